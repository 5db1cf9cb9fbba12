"""The endpoints of docs/graph.md: the table that is made from the routes, and what is not supported."""

import re

from tests.support.docs_tables import PAGE

_MADE = re.compile(r"^\| `(/[^`]*)` \| (`[^|]+`) \|", re.MULTILINE)
_ELSEWHERE = [
    ("POST", "/$batch"),
    ("GET", "/$metadata"),
    ("GET", "/users/{id}"),
]  # named in the text


def rows(supported: str) -> list[tuple[str, str]]:
    """Return the methods and paths of endpoints that are (`yes`) or are not (`no`) supported."""
    section = PAGE.read_text().partition("\n## Endpoints\n")[2].partition("\n## ")[0]
    made, _, refused = section.partition("\nNot supported")
    if supported == "yes":
        made_rows = [(path, methods.split()) for path, methods in _MADE.findall(made)]
        return [(one.strip("`"), path) for path, some in made_rows for one in some] + _ELSEWHERE
    cells = re.findall(r"^\| (`[^|]+`) \|", refused, re.MULTILINE)
    return [(*one.split(),) for cell in cells for one in re.findall("`([^`]+)`", cell)]
