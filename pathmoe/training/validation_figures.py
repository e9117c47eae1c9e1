"""The figures of a validation as a table for people, at most 80 columns wide."""

from collections.abc import Iterable, Mapping

_WIDTH = 80
_NAME_WIDTH = 24


def validation_rows(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names and values of what was measured; nothing of what was not.

    Args:
        figures: by the names under which they are logged.
    """
    rows = [
        ("validation perplexity", _figure(figures, "val/perplexity", "{:.2f}")),
        ("bits per byte", _figure(figures, "val/bits_per_byte", "{:.3f}")),
        ("path entropy", _path_entropy(figures)),
        ("adjacent-layer agreement", _agreement(figures)),
    ]
    return [(name, value) for name, value in rows if value]


def table(rows: Iterable[tuple[str, str]]) -> str:
    """One line a row, or two where a long value needs one of its own."""
    lines = [(f"  {name:<{_NAME_WIDTH}}  {value}", f"  {name}\n    {value}") for name, value in rows]
    return "\n".join(line if len(line) <= _WIDTH else two_lines for line, two_lines in lines)


def _figure(figures: Mapping[str, float], name: str, form: str) -> str:
    return form.format(figures[name]) if name in figures else ""


def _path_entropy(figures: Mapping[str, float]) -> str:
    if "val/path_entropy_bits" not in figures:
        return ""
    ceiling = figures["val/path_entropy_ceiling_bits"]
    return f"{figures['val/path_entropy_bits']:.2f} bits of {ceiling:.2f} that {round(2**ceiling):,} tokens allow"


def _agreement(figures: Mapping[str, float]) -> str:
    if "val/adjacent_agreement" not in figures:
        return ""
    chance = figures["val/adjacent_agreement_null"]
    shared = figures["val/adjacent_mutual_information_bits"]
    return f"{figures['val/adjacent_agreement']:.1%} (by chance {chance:.1%}), {shared:z.2f} bits shared"
