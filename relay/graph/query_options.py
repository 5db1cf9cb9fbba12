"""OData's query options: those that a handler takes, and a refusal of all others.

On the path: every handler asks, also those that take none.
Holds: an option that would change the answer is never silently ignored.
Fails: ApiError 400 that names the option.
Standards: OData 4.01 URL conventions 5.1; Graph's paging (absolute @odata.nextLink).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from relay.http.errors import ApiError, shown

TOP_DEFAULT = 10
TOP_MAX = 1000
_SKIP_MAX = 2**31 - 1
# Graph takes these without the dollar sign as well.
_SYSTEM = frozenset(
    (
        *("select", "top", "skip", "filter", "orderby", "search", "count", "expand", "format"),
        *("skiptoken", "deltatoken", "apply", "compute"),
    )
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for; `select` is empty for everything.

    `expand`, `filter`, `search` and `orderby` are as they came, None where they did not.
    """

    select: tuple[str, ...] = ()
    expand: str | None = None
    filter: str | None = None
    search: str | None = None
    orderby: str | None = None
    count: bool = False
    top: int = TOP_DEFAULT
    skip: int = 0
    skiptoken: str = ""

    def next_link(self, url: str, *, skip: int = 0, skiptoken: str = "") -> str:
        """Return the absolute URL of the next page, by its token or by number; `url` has no query.

        What the token says includes what was skipped before.
        """
        query = {
            "$select": ",".join(self.select) or None,
            "$expand": self.expand,
            "$filter": self.filter,
            "$search": self.search,
            "$orderby": self.orderby,
            "$count": "true" if self.count else None,
            "$top": str(self.top),
            "$skip": None if skiptoken else str(skip),
            "$skiptoken": skiptoken or None,
        }
        given = {name: value for name, value in query.items() if value is not None}
        return f"{url}?{urlencode(given, safe='$,', quote_via=quote)}"


_NONE_GIVEN = Options()


def parse_options(
    query: Collection[tuple[str, str]],
    *,
    allowed: Collection[str] = (),
    known: Collection[str] = (),
    page_size: int | None = None,
) -> Options:
    """Read the options of a query; `known` are the properties that $select may name.

    A page has `page_size` items at most, if that is given. Raises ApiError 400.
    """
    if not query and page_size is None:
        return _NONE_GIVEN
    given: dict[str, str] = {}
    for name, value in query:
        option = name.removeprefix("$").lower()
        if option not in _SYSTEM:
            if name.startswith("$"):
                raise _bad(f"The query option {shown(name)} is not supported.")
            continue
        if option not in allowed:
            raise _bad(f"The query option '${option}' is not supported here.")
        if option in given:
            raise _bad(f"The query option '${option}' is given twice.")
        given[option] = value
    size = page_size or TOP_DEFAULT
    top = _number(given, "top", default=size, limits=(1, TOP_MAX))
    return Options(
        select=_select(given.get("select", ""), known),
        expand=given.get("expand"),
        filter=given.get("filter"),
        search=given.get("search"),
        orderby=given.get("orderby"),
        count=_truth(given, "count"),
        top=min(top, page_size or TOP_MAX),
        skip=_number(given, "skip", default=0, limits=(0, _SKIP_MAX)),
        skiptoken=given.get("skiptoken", ""),
    )


def _select(value: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise _bad(f"$select: could not find a property named {shown(name)}.")
    return names


def _number(given: dict[str, str], name: str, *, default: int, limits: tuple[int, int]) -> int:
    text = given.get(name)
    if text is None:
        return default
    low, high = limits
    if text.isascii() and text.isdecimal() and len(text) <= len(str(high)):
        number = int(text)
        if low <= number <= high:
            return number
    raise _bad(f"${name}: found {shown(text)}, expected a number from {low} to {high}.")


def _truth(given: dict[str, str], name: str) -> bool:
    text = given.get(name, "false")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise _bad(f"${name}: found {shown(text)}, expected true or false.")


def _bad(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


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
