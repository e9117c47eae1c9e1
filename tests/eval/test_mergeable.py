"""What may be merged, and the one-line refusal of what may not."""

from types import SimpleNamespace

import pytest

from pathmoe_eval.mergeable import check_mergeable


def test_only_the_named_attributes_must_be_equal():
    ours, other = SimpleNamespace(num_layers=2, num_tokens=5), SimpleNamespace(num_layers=2, num_tokens=7)
    check_mergeable(ours, other, "num_layers")
    with pytest.raises(ValueError, match=r"^other\.num_tokens \(7\) must equal num_tokens \(5\); merge counts of one "):
        check_mergeable(ours, other, "num_layers", "num_tokens")
