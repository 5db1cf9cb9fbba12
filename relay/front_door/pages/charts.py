"""Small charts: where the lines of a series of values run, and the same values as a table.

Pure. The template `charts.html` makes SVG of them. Lines end at a gap; a single value between two
gaps is a dot.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from msgspec import Struct

WIDTH, HEIGHT = 600, 100  # size of the drawing, in units of the SVG
_NARROW_SPACE = "\u202f"  # between groups of digits, and between a number and its unit
_NO_DATA = "no data"


class Series(Struct, frozen=True):
    """One line: a value for each time, None for a gap."""

    name: str
    values: Sequence[float | None]


class DrawnLine(Struct, frozen=True):
    """A line of a chart: the data of its SVG path, and its latest and highest value as text."""

    name: str
    path: str
    latest: str
    highest: str


class Chart(Struct, frozen=True):
    """A chart as the template needs it; `times` are in RFC 3339, `maximum` is a text.

    `rows` are the times with their values as text. Charts whose titles are equal up to a comma have
    the same `key`.
    """

    key: str
    title: str
    times: Sequence[str]
    maximum: str
    lines: Sequence[DrawnLine]
    rows: Sequence[tuple[str, Sequence[str]]]


def draw(
    title: str,
    times: Mapping[str, float],
    series: Sequence[Series],
    *,
    text_of: Callable[[float], str],
    top: float | None = None,
) -> Chart:
    """Return the chart of some series with a value for each of `times`, which have their places
    from 0 to 1.

    `text_of` writes a value with its unit. The upper edge is `top`, or the highest value.
    """
    known = [value for curve in series for value in curve.values if value is not None]
    edge = top or max(known, default=0.0) or 1.0
    lines = [
        DrawnLine(
            curve.name,
            path_of(times.values(), curve.values, edge),
            _text(curve.values[-1] if curve.values else None, text_of),
            _text(max((v for v in curve.values if v is not None), default=None), text_of),
        )
        for curve in series
    ]
    rows = [
        (time, [_text(value, text_of) for value in column])
        for time, *column in zip(times, *(curve.values for curve in series), strict=True)
    ]
    name = title.partition(",")[0].lower()
    return Chart(
        key="".join(character if character.isalnum() else "-" for character in name),
        title=title,
        times=[*times],
        maximum=text_of(edge),
        lines=lines,
        rows=rows,
    )


def path_of(places: Iterable[float], values: Sequence[float | None], edge: float) -> str:
    """Return the data of an SVG path: one line for each run of values without a gap."""
    points = [
        (place * WIDTH, HEIGHT - min(value, edge) / edge * HEIGHT if value is not None else None)
        for place, value in zip(places, values, strict=True)
    ]
    parts = []
    for is_known, run in groupby(points, key=lambda point: point[1] is not None):
        if is_known:
            drawn = [f"{x:.4g} {y:.4g}" for x, y in run]
            parts.append(f"M{'L'.join(drawn)}" if drawn[1:] else f"M{drawn[0]}h.01")
    return "".join(parts)


def number_text(value: float) -> str:
    """Return a number: thousands in groups, small ones with two significant digits."""
    if value == 0 or abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}".replace(",", _NARROW_SPACE)
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.1f}"


def duration_text(seconds: float) -> str:
    """Return a duration with its unit: 12 ms, 3.4 s, 5 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 0.9995:
        return _with_unit(number_text(round(seconds * 1000, 1)), "ms")
    if seconds < 60:
        return _with_unit(f"{seconds:.2g}" if seconds < 9.95 else f"{seconds:.0f}", "s")
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            more = rest // smaller
            text = _with_unit(number_text(whole), unit)
            return f"{text} {_with_unit(str(more), smaller_unit)}" if more else text
    return _with_unit("60", "s")


def _with_unit(number: str, unit: str) -> str:
    return f"{number}{_NARROW_SPACE}{unit}"


def _text(value: float | None, text_of: Callable[[float], str]) -> str:
    return _NO_DATA if value is None else text_of(value)
