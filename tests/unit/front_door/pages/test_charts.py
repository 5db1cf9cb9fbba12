"""Charts: lines with gaps, and the same values as a table."""

from relay.front_door.pages.charts import (
    HEIGHT,
    WIDTH,
    Series,
    draw,
    duration_text,
    number_text,
    path_of,
)
from tests.support.tables import each_row

TIMES = {"10:00": 0, "10:01": 0.25, "10:02": 0.5, "10:03": 0.75, "10:04": 1}


def test_a_line_goes_over_the_whole_width_and_from_the_lower_to_the_upper_edge():
    assert path_of([0, 0.5, 1], [0.0, 5.0, 10.0], 10.0) == f"M0 {HEIGHT}L{WIDTH // 2} 50L{WIDTH} 0"


def test_a_gap_ends_a_line_and_a_single_value_is_a_dot():
    path = path_of(TIMES.values(), [0.0, 10.0, None, 5.0, None], 10.0)
    assert path == "M0 100L150 0M450 50h.01"
    assert path_of([0, 1], [None, None], 1.0) == ""


def test_a_chart_says_in_a_table_what_its_lines_show():
    series = [Series("in", [1.0, 3.0, None, 2.0, 0.0]), Series("out", [None, 1.0, None, 0.5, None])]
    chart = draw("In and out, per second", TIMES, series, text_of=lambda value: f"{value:g}/s")
    assert (chart.key, chart.maximum, chart.times) == ("in-and-out", "3/s", [*TIMES])
    assert [(one.latest, one.highest) for one in chart.lines] == [
        ("0/s", "3/s"),
        ("no data", "1/s"),
    ]
    assert chart.rows[0] == ("10:00", ["1/s", "no data"])
    assert chart.rows[1] == ("10:01", ["3/s", "1/s"])
    assert chart.rows[2] == ("10:02", ["no data", "no data"])
    assert [one.path.count("M") for one in chart.lines] == [2, 2]


@each_row(
    "value, expected",
    [
        (0, "0"),
        (1, "1"),
        (0.0123, "0.012"),
        (1.26, "1.3"),
        (12.34, "12.3"),
        (999.9, "1 000"),
        (12345678, "12 345 678"),
        (100.4, "100"),
    ],
)
def test_numbers_have_groups_and_few_digits(value, expected):
    assert number_text(value) == expected.replace(" ", "\u202f")


@each_row(
    "seconds, expected",
    [
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.0124, "12.4 ms"),
        (0.2, "200 ms"),
        (0.9999, "1 s"),
        (3.44, "3.4 s"),
        (59.7, "60 s"),
        (60, "1 min"),
        (61, "1 min,1 s"),
        (3600, "1 h"),
        (7800, "2 h,10 min"),
        (86400, "1 d"),
        (273600, "3 d,4 h"),
        (400 * 86400, "400 d"),
    ],
)
def test_durations_have_their_unit(seconds, expected):
    assert duration_text(seconds) == expected.replace(" ", "\u202f").replace(",", " ")
