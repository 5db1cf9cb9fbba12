"""The text of the search box, and of `q` of GET /messages, as conditions of the message list.

Words are parts of the subject or an address, or begin a word of the text; `from:`, `to:`,
`subject:`, `state:` and `id:` name what is compared. A value with `*` is a pattern for the whole
text, any other value a part of the text. `client:`, `login:`, `has:`, `larger:`, `after:`,
`before:` and `is:` have values of their own. `-tag:` or `!tag:` leaves out what has the tag.
"""

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.phrases import words_in
from relay.base.settings.values import is_ip, parse_time
from relay.base.socket_address import network_of
from relay.front_door.api import request_parameters
from relay.front_door.http.errors import bad_request, quoted
from relay.store.journeys.journey import PAGES_MAX, Journeys
from relay.store.journeys.message_list import MAIL, MessageSearch, SearchedTag

TEXT_CHARACTERS_MAX = 1000
WORDS_MAX = 20
_SIZE = re.compile(r"([0-9]{1,12})([kmg]?)b?", re.ASCII | re.IGNORECASE)
_BYTES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_FIELDS = ("sender", "to", "subject", "state", "key")  # conditions that are also parameters
# A prefix, then a value or a word. In quotes a quote is twice; the last one may be missing.
_TOKEN = re.compile(
    r'(?:(-?|!(?=(?i:tag:|is:tagged)))([A-Za-z_]+):(?=[^\s/]))?(?:"((?>[^"]|"")*+)(?:"|$)|(\S+))'
)


class SearchTextError(ValueError):
    """The text is not a valid search; the message says why."""


class _Token(Struct, frozen=True):
    prefix: str
    value: str
    is_excluded: bool = False


def parse_search(text: str, now_us: int) -> MessageSearch:
    """Return the conditions, joined by "and". Raises SearchTextError."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise SearchTextError(
            f"The search has {len(text):,} characters; it may have {TEXT_CHARACTERS_MAX:,}."
        )
    search = MessageSearch()
    prefixes: set[str] = set()
    for token in _tokens(text):
        if token.prefix in prefixes and token.prefix not in ("tag", "is"):
            raise SearchTextError(f"{token.prefix}: is there twice. Keep one of the two.")
        if token.prefix:
            prefixes.add(token.prefix)
        search = _with(search, token, now_us)
    if 0 < search.until_us <= search.from_us:
        raise SearchTextError("before: expected a later time than the search begins with.")
    if len(search.words) > WORDS_MAX:
        raise SearchTextError(f"The search has more than {WORDS_MAX} words.")
    return search


def list_search_of(query: Mapping[str, str], now_us: int) -> MessageSearch:
    """Return the conditions of GET /messages, including those in `q`. Raises ApiError 400."""
    parameters = request_parameters.message_search_of(query)
    if "q" not in query:
        return parameters
    try:
        search = parse_search(query["q"], now_us)
    except SearchTextError as error:
        raise bad_request(f"q: {error}") from None
    for name in _FIELDS:
        if getattr(parameters, name) and getattr(search, name):
            raise bad_request(f"q: it has {name} too, which is a parameter.")
    if search.key and parameters.after:
        raise bad_request("q: found id: together with the parameter after, expected one of them.")
    both = {name: getattr(parameters, name) or getattr(search, name) for name in _FIELDS}
    return replace(
        search, **both, mailbox=parameters.mailbox, kind=parameters.kind, after=parameters.after
    )


async def log_rows(
    journeys: Journeys, query: Mapping[str, str], *, account: str | None
) -> dict[str, Any]:
    """Return the answer of GET /log; contents are not searched. Raises ApiError 400."""
    search = list_search_of(query, journeys.clock.time_us())
    limit = request_parameters.limit_of(query)
    search = replace(search, kind=MAIL, added=account is None)
    pages = int(
        request_parameters.number_of(query, "pages", default=PAGES_MAX, limits=(1, PAGES_MAX))
    )
    before = request_parameters.list_position_of(query)
    page = await journeys.log(search, account=account, limit=limit, before=before, pages=pages)
    return page.as_json() | times_of(search)


def times_of(search: MessageSearch) -> dict[str, str]:
    """Return the times of `after` and `before` for the answer: `since`, `until`."""
    times_us = {"since": search.from_us, "until": search.until_us}
    return {name: rfc3339(time_us) for name, time_us in times_us.items() if time_us}


def _tokens(text: str) -> list[_Token]:
    tokens = []
    for match in _TOKEN.finditer(text):
        minus, prefix, in_quotes, plain = match.groups()
        value = (plain or in_quotes.replace('""', '"')).strip()
        prefix = (prefix or "").lower()
        of_tag = prefix == "tag" or (prefix == "is" and value.lower() == "tagged")
        if (minus and not of_tag) or (not prefix and in_quotes is None and re.match(r"-\w", value)):
            raise SearchTextError(
                f"{quoted(match[0])}: a search can leave out tags alone. For the text itself, put "
                "it in quotes."
            )
        if prefix and prefix not in SEARCH_PREFIXES:
            names = ", ".join(f"{prefix}:" for prefix in SEARCH_PREFIXES)
            raise SearchTextError(
                f"{quoted(prefix + ':')} is not known; there are {names}. For the text itself, put "
                "it in quotes."
            )
        if value:
            tokens.append(_Token(prefix, value, bool(minus)))
    return tokens


def _with(search: MessageSearch, token: _Token, now_us: int) -> MessageSearch:
    match token.prefix:
        case "from":
            sender = token.value if token.value == "<>" else _pattern(token.value)
            return replace(search, sender=sender)
        case "to":
            return replace(search, to=_pattern(token.value))
        case "subject":
            return replace(search, subject=_pattern(token.value))
        case "state":
            state = token.value.lower()
            if state not in request_parameters.MESSAGE_STATES:
                states = ", ".join(request_parameters.MESSAGE_STATES)
                raise SearchTextError(f"state: {quoted(state)} is not a state; there are {states}.")
            return replace(search, state=state)
        case "id":
            return replace(search, key=token.value)
        case "tag" | "is" if token.prefix == "tag" or token.value.lower() == "tagged":
            name = token.value if token.prefix == "tag" else ""
            return replace(search, tags=(*search.tags, SearchedTag(name, token.is_excluded)))
        case "after" | "before" as name:
            field = {"after": "from_us", "before": "until_us"}[name]
            return replace(search, **{field: _time_us(token, now_us)})
        case "":
            return replace(search, words=(*search.words, token.value))
        case name:
            return replace(search, **_OWN_VALUES[name](token.value))


def _has(value: str) -> dict[str, Any]:
    if (what := value.lower().removesuffix("s")) not in ("attachment", "complaint", "suppressed"):
        expected = "expected attachment, complaint or suppressed"
        raise SearchTextError(f"has: found {quoted(value)}, {expected}.")
    return {f"has_{what}": True}


def _larger(value: str) -> dict[str, Any]:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise SearchTextError(
            f"larger: found {quoted(value)}, expected a size such as 100k or 2M (of 1,000 bytes)."
        )
    return {"larger_than_bytes": int(match[1]) * _BYTES[match[2].lower()]}


def _time_us(token: _Token, now_us: int) -> int:
    try:
        return max(parse_time(token.value, now_us), 1)
    except ValueError as error:
        text = f"{token.prefix}: found {quoted(token.value)}, expected {error}."
        raise SearchTextError(text) from None


def _client(value: str) -> str:
    if "/" not in value:
        return str(ip_address(value)) if is_ip(value) else value
    try:
        return str(network_of(value))
    except ValueError as error:
        raise SearchTextError(f"client: found {quoted(value)}, expected {error}.") from None


def _is(value: str) -> dict[str, Any]:
    if value.lower() != "unread":
        raise SearchTextError(f"is: found {quoted(value)}, expected unread or tagged.")
    return {"is_unread": True}


_OWN_VALUES: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "has": _has,
    "larger": _larger,
    "client": lambda value: {"client": _client(value)},
    "login": lambda value: {"login": value if "@" in value else _pattern(value)},
    "is": _is,
}
SEARCH_PREFIXES = (*words_in("from to subject state id tag after before"), *_OWN_VALUES)


def _pattern(value: str) -> str:
    """Return a pattern that finds a part of a text; a value with `*` is such a pattern already."""
    return value if "*" in value else f"*{value}*"
