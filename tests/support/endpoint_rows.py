"""The rows of the table of endpoints in docs/graph.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/graph.md"
_HEADING = "## Graph v1.0 mail endpoints: supported or not, limits, differences"
_ROW = re.compile(r"^\| (`[^|]+`) \| (yes|no) \|.*\|.*\|$", re.MULTILINE)


def rows(supported: str) -> list[tuple[str, str]]:
    """Return the methods and paths of the rows with `yes` or with `no`, as they are written."""
    section = PAGE.read_text().partition(_HEADING)[2].partition("\n#")[0]
    cells = [endpoints for endpoints, found in _ROW.findall(section) if found == supported]
    endpoints = [one for cell in cells for one in re.findall("`([^`]+)`", cell)]
    return [(method, path) for method, path in map(str.split, endpoints)]
