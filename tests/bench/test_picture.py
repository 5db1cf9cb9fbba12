"""The page and the picture show the figures that make bench has kept."""

import json
from xml.etree import ElementTree as ET

from tests.bench.picture import FIGURES, PAGE, PICTURE, drawn, with_tables
from tests.bench.side_by_side import BOUNDS


def test_the_page_and_the_picture_show_the_kept_figures() -> None:
    found = json.loads(FIGURES.read_text())
    assert PICTURE.read_text() == drawn(found), "make bench ARGS=picture writes it"
    assert PAGE.read_text() == with_tables(PAGE.read_text(), found), (
        "make bench ARGS=picture writes it"
    )


def test_the_picture_says_its_numbers_in_words_and_stays_within_its_frame() -> None:
    found = json.loads(FIGURES.read_text())
    picture = ET.fromstring(drawn(found))
    told = picture.findtext("{*}desc") or ""
    for name in BOUNDS:
        lowest, median, highest = found[name]["ratio"]["cpu_ms_per_msg"]
        assert f"{name}: CPU time {median:.2f} ({lowest:.2f} .. {highest:.2f})" in told
    bars = picture.findall("{*}rect[@class='bar']")
    assert len(bars) == 2 * len(BOUNDS)
    assert all(float(bar.get("x", 0)) + float(bar.get("width", 0)) <= 760 for bar in bars)


def test_the_picture_follows_its_figures() -> None:
    found = json.loads(FIGURES.read_text())
    before = drawn(found)
    found["large"]["ratio"]["through_per_s"][1] *= 1.1
    assert drawn(found) != before
