"""What paths are about: classes of tokens, how well paths separate them, the tokens of frequent paths."""
