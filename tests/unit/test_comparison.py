"""docs/comparison.md: each "yes" for Relay is in bold, and says where to read more."""

import re

from tests.unit.test_docs import TOP

PAGE = TOP / "docs/comparison.md"
WORDS = {"yes", "no", "partly", "\N{EN DASH}"}


def table() -> dict[str, dict[str, str]]:
    """The cells of each row, by the heads of their columns."""
    rows = [
        cells(line)
        for line in PAGE.read_text().splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    heads = rows[0][1:]
    return {row[0]: dict(zip(heads, row[1:], strict=True)) for row in rows[1:]}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]


def word(cell: str) -> str:
    return re.split(r"[:, ]", cell.replace("*", ""))[0]


def test_every_cell_begins_with_one_of_four_words():
    found = {
        word(cell) for row in table().values() for head, cell in row.items() if head != "Relay: see"
    }
    assert found == WORDS


def test_relay_has_a_page_for_each_yes():
    for name, row in table().items():
        claims = word(row["Relay"]) in ("yes", "partly")
        assert claims == row["Relay"].startswith("**"), name
        assert claims == bool(re.fullmatch(r"\[.+\]\(.+\)", row["Relay: see"])), name
