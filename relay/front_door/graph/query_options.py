"""OData system query options of a request, and the preferences in its Prefer header.

An option that a handler does not support is an error (400), never ignored. A preference that is
unknown or malformed is ignored (RFC 7240 2). OData 4.01 URL conventions 5.1, Protocol 8.2.8.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import quote, urlencode

from msgspec import Struct

from relay.base.phrases import words_in
from relay.front_door.graph import errors
from relay.front_door.http.errors import bad_request, quoted

# limit of Graph: a page without `$top`
TOP_DEFAULT = 10
# limit of Graph: `$top`: of folders and attachments more are pages, else 400
TOP_MAX = 1000
_SKIP_MAX = 2**31 - 1
_FORMATS = ("json", "application/json")
# Graph takes these without the dollar sign as well.
_SYSTEM = words_in(
    "select top skip filter orderby search count expand format skiptoken deltatoken apply compute"
)


class QueryOptions(Struct, frozen=True):
    """The query options of a request; None for those that are not given."""

    select: tuple[str, ...] = ()  # empty: all properties
    expand: str | None = None  # the text, not parsed
    filter: str | None = None  # the text, not parsed
    search: str | None = None  # the text, not parsed
    orderby: str | None = None  # the text, not parsed
    count: bool = False  # whether to return @odata.count
    top: int = TOP_DEFAULT  # messages of a page at most
    skip: int = 0  # messages to skip
    skiptoken: str = ""  # of an @odata.nextLink
    deltatoken: str | None = None  # of an @odata.deltaLink

    def next_link(self, url: str, *, skip: int = 0, skiptoken: str = "") -> str:
        """Return the @odata.nextLink, by `skiptoken` or by `skip`; `url` has no query.

        The token includes what was skipped before.
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
        options = {name: value for name, value in query.items() if value is not None}
        return f"{url}?{urlencode(options, safe='$,', quote_via=quote)}"


def parse_options(
    query: Collection[tuple[str, str]],
    allowed: Collection[str] = (),
    known: Collection[str] = (),
    *,
    kind: str = "",
    page_size: int | None = None,
) -> QueryOptions:
    """Read the query options; `known` are the properties of the type `kind` that $select may name.

    `page_size` limits $top; of some kinds a $top over the maximum is the maximum. Raises ApiError
    400.
    """
    if not query and page_size is None:
        return QueryOptions()
    options: dict[str, str] = {}
    for name, value in query:
        option = name.removeprefix("$").lower()
        if option not in _SYSTEM:
            if name.startswith("$"):
                raise bad_request(f"The query option {quoted(name)} is not supported.")
            continue
        if option == "format":
            if value.partition(";")[0].strip().lower() not in _FORMATS:
                raise bad_request(f"$format: found {quoted(value)}, expected json.")
            continue
        if option not in allowed:
            raise bad_request(f"The query option '${option}' is not supported here.")
        if option in options:
            raise bad_request(f"The query option '${option}' is given twice.")
        options[option] = value
    size = page_size or TOP_DEFAULT
    most = _SKIP_MAX if kind in ("mailFolder", "attachment") else TOP_MAX
    top = _number(options, "top", default=size, limits=(1, most))
    return QueryOptions(
        select=_select(options.get("select", ""), known, kind),
        expand=options.get("expand"),
        filter=options.get("filter"),
        search=options.get("search"),
        orderby=options.get("orderby"),
        count=_truth(options, "count"),
        top=min(top, page_size or TOP_MAX),
        skip=_number(options, "skip", default=0, limits=(0, _SKIP_MAX)),
        skiptoken=options.get("skiptoken", ""),
        deltatoken=options.get("deltatoken"),
    )


def _select(value: str, known: Collection[str], kind: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if "*" in names:
        return tuple(known) if len(names) > 1 else ()
    for name in names:
        if name not in known:
            raise errors.SELECT_UNKNOWN(f"$select: found {quoted(name)}.", quoted(name), kind)
    return names


def _number(options: dict[str, str], name: str, *, default: int, limits: tuple[int, int]) -> int:
    text = options.get(name)
    if text is None:
        return default
    low, high = limits
    if text.isascii() and text.isdecimal() and len(text) <= len(str(high)):
        number = int(text)
        if low <= number <= high:
            return number
    detail = f"${name}: found {quoted(text)}, expected a number from {low} to {high}."
    if name == "top" and text.isascii() and text.isdecimal():
        if not text.strip("0"):
            raise bad_request(f"$top: found {quoted(text)}, expected 1 or more.")
        raise errors.TOP_EXCEEDED(detail, str(high), quoted(text))
    raise errors.NUMBER_INVALID(detail, quoted(text), name)


def _truth(options: dict[str, str], name: str) -> bool:
    text = options.get(name, "false")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise bad_request(f"${name}: found {quoted(text)}, expected true or false.")


_PREFERENCE = re.compile(
    r'[ \t,]*+([^\s,;="]++)(?>[ \t]*+=[ \t]*+("(?>[^"\\]|\\.)*+"|[^\s,;"]*+))?+'
    r'((?>[^,"]|"(?>[^"\\]|\\.)*+")*+)'  # parameters, which are ignored
)
_DIGITS_MAX = 9  # of a number; a longer one is over the maximum
_ESCAPED = re.compile(r"\\(.)")


def preferences(lines: Iterable[str]) -> dict[str, str]:
    """Return the preferences of all Prefer fields by lower-case name; of duplicates the first."""
    by_name: dict[str, str] = {}
    for line in lines:
        position = 0
        while match := _PREFERENCE.match(line, position):
            position = match.end()
            name, value = match[1].lower(), match[2] or ""
            if value.startswith('"'):
                value = _ESCAPED.sub(r"\1", value[1:-1])
            by_name.setdefault(name, value)
    return by_name


def max_page_size(preferred: Mapping[str, str]) -> int | None:
    """Return the page size of odata.maxpagesize, at most 1000; None if it is not given."""
    text = preferred.get("odata.maxpagesize", preferred.get("maxpagesize", ""))
    if not (text.isascii() and text.isdecimal()):
        return None
    return min(int(text[:_DIGITS_MAX]), TOP_MAX) or None
