"""Reports as a page and as numbers, alone and side by side."""
