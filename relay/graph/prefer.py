"""What a client prefers: the Prefer header as names and values.

On the path: lists and what is sent look up the preferences they know and pass the others over.
Holds: names in lower case; of a preference that is given twice the first counts.
Fails: never; what cannot be read is no preference.
Standards: RFC 7240 2; OData 4.01 Protocol 8.2.8 (odata.maxpagesize).
"""

import re
from collections.abc import Iterable, Mapping

from relay.graph.options import TOP_MAX

_PREFERENCE = re.compile(
    r'[ \t,]*+([^\s,;="]++)(?:[ \t]*+=[ \t]*+("(?:[^"\\]|\\.)*+"|[^\s,;"]*+))?+'
    r'((?:[^,"]|"(?:[^"\\]|\\.)*+")*+)'  # parameters, which no preference here has
)
_DIGITS_MAX = 9  # of a number; what is longer is too much anyway
_ESCAPED = re.compile(r"\\(.)")


def preferences(lines: Iterable[str]) -> dict[str, str]:
    """Return the preferences of all Prefer header lines; the value is "" where there is none."""
    found: dict[str, str] = {}
    for line in lines:
        position = 0
        while match := _PREFERENCE.match(line, position):
            position = match.end()
            name, value = match[1].lower(), match[2] or ""
            if value.startswith('"'):
                value = _ESCAPED.sub(r"\1", value[1:-1])
            found.setdefault(name, value)
    return found


def page_size(preferred: Mapping[str, str]) -> int | None:
    """Return how many items of a page odata.maxpagesize allows, None if it says nothing."""
    text = preferred.get("odata.maxpagesize", preferred.get("maxpagesize", ""))
    if not (text.isascii() and text.isdecimal()):
        return None
    return min(int(text[:_DIGITS_MAX]), TOP_MAX) or None
