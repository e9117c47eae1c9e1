"""A study in one small picture for a README or a slide: bits per byte and path entropy of each variant, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from pathmoe_eval.studies.comparison import Measured, VariantComparison
from pathmoe_eval.studies.figures import FIGURES, PRIMARY

_SHOWN = (PRIMARY, "path_entropy_bits")

_PANEL, _VALUE, _GAP = 250, 56, 24
_TOP, _ROW, _BOTTOM = 78, 30, 44
_CHARACTER = 7
_MOST_TICKS = 5
_LEGEND = "circle: a run; diamond and line: the mean over seeds and its 95% t interval"
_COLOUR, _QUIET = "#4477aa", "#555"


def picture(title: str, note: str, compared: Sequence[VariantComparison]) -> str:
    """The picture as an SVG document: a row for each variant, the best one first.

    Args:
        title: of the study.
        note: below it, such as tokens and seeds.
        compared: at least one variant.
    """
    height = _TOP + _ROW * len(compared) + _BOTTOM
    left = 30 + _CHARACTER * max(12, *(len(one.name) for one in compared))
    width = left + 2 * (_PANEL + _VALUE) + _GAP
    names = "".join(
        f'<text x="{left - 10}" y="{_y(row) + 4:.1f}" text-anchor="end">{escape(one.name)}</text>'
        for row, one in enumerate(compared)
    )
    stripes = "".join(
        f'<rect y="{_y(row) - _ROW / 2:.1f}" width="{width}" height="{_ROW}" fill="#f4f4f4"/>'
        for row in range(0, len(compared), 2)
    )
    panels = "".join(_panel(key, compared, left + place * (_PANEL + _VALUE + _GAP)) for place, key in enumerate(_SHOWN))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{stripes}'
        f'<text x="10" y="20" font-size="16" font-weight="bold">{escape(title)}</text>'
        f'<text x="10" y="38" fill="{_QUIET}">{escape(note)}</text>'
        f'<text x="10" y="55" fill="{_QUIET}">{_LEGEND}</text>{names}{panels}</svg>\n'
    )


def _y(row: int) -> float:
    return _TOP + _ROW * (row + 0.5)


def _panel(key: str, compared: Sequence[VariantComparison], left: float) -> str:
    """One figure: an axis, and of each variant its runs, mean and interval."""
    figure = next(one for one in FIGURES if one.key == key)
    of_rows = {row: one.figures[key] for row, one in enumerate(compared) if key in one.figures}
    if not of_rows:
        return ""
    low, high = _range(list(of_rows.values()))

    def x(value: float) -> float:
        return left + _PANEL * (value - low) / (high - low)

    rows = "".join(
        f"{_marks(measured, x, _y(row))}"
        f'<text x="{left + _PANEL + 8}" y="{_y(row) + 4:.1f}">{escape(figure.form(measured.mean))}</text>'
        for row, measured in of_rows.items()
    )
    bottom = _y(len(compared)) - _ROW / 2
    ticks = "".join(_tick(x(value), bottom, label) for value, label in _ticks(low, high))
    return (
        f'<path d="M{left} {bottom:.1f}h{_PANEL}" stroke="{_QUIET}"/>{ticks}{rows}'
        f'<text x="{left + _PANEL / 2}" y="{bottom + 36:.1f}" text-anchor="middle">{escape(figure.name)}</text>'
    )


def _range(shown: Sequence[Measured]) -> tuple[float, float]:
    """Ends of an axis that has all runs and intervals, and some room."""
    values = [value for measured in shown for value in (*measured.by_seed.values(), *(measured.interval or ()))]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values from low to high, one to six, with their labels."""
    size = 10 ** math.floor(math.log10(high - low))
    step = next(of_one * size for of_one in (0.2, 0.5, 1.0, 2.0) if (high - low) / (of_one * size) <= _MOST_TICKS)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(number * step, f"{number * step:z.{digits}f}") for number in range(first, last + 1)]


def _tick(x: float, y: float, label: str) -> str:
    line = f'<path d="M{x:.1f} {y:.1f}v4" stroke="{_QUIET}"/>'
    return f'{line}<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle" fill="{_QUIET}">{label}</text>'


def _marks(measured: Measured, x: Callable[[float], float], y: float) -> str:
    """Runs as circles, the mean as a diamond, its interval as a line."""
    runs = "".join(
        f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="3.5" fill="none" stroke="{_COLOUR}"/>'
        for value in measured.by_seed.values()
    )
    interval = ""
    if measured.interval is not None:
        low, high = map(x, measured.interval)
        interval = f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{_COLOUR}" stroke-width="1.5"/>'
    mean = f'<path d="M{x(measured.mean):.1f} {y - 6:.1f}l5 6l-5 6l-5 -6z" fill="{_COLOUR}"/>'
    return interval + runs + mean
