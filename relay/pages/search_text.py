"""The text of the search box as conditions of the message list.

Words are parts of the subject or an address; `from:`, `to:`, `subject:`, `state:` and `id:` name
what is compared. A value with `*` is a pattern of the whole text, another one is a part of it.
"""

import re
from dataclasses import dataclass, replace

from relay.api.request_parameters import MESSAGE_STATES
from relay.http.errors import quoted
from relay.journeys.message_search import MessageSearch

TEXT_CHARACTERS_MAX = 1000
WORDS_MAX = 20
_PREFIXES = ("from", "to", "subject", "state", "id")
# A prefix, then a value or a word; a value may be in quotes, and a last quote may be missing.
_TOKEN = re.compile(r'(?:(-?)([A-Za-z_]+):(?=[^\s/]))?(?:"([^"]*)(?:"|$)|(\S+))')


class SearchTextError(ValueError):
    """The text is not a search; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class _Token:
    prefix: str
    value: str


def parse_search(text: str) -> MessageSearch:
    """Return the conditions, joined by "and". Raises SearchTextError."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise SearchTextError(
            f"The search has {len(text):,} characters; it may have {TEXT_CHARACTERS_MAX:,}."
        )
    wanted = MessageSearch()
    given: set[str] = set()
    for token in _tokens(text):
        if token.prefix in given:
            raise SearchTextError(f"{token.prefix}: is there twice. Keep one of the two.")
        if token.prefix:
            given.add(token.prefix)
        wanted = _with(wanted, token)
    if len(wanted.words) > WORDS_MAX:
        raise SearchTextError(f"The search has more than {WORDS_MAX} words.")
    return wanted


def _tokens(text: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(text):
        minus, prefix, in_quotes, plain = match.groups()
        value = (in_quotes if in_quotes is not None else plain).strip()
        prefix = (prefix or "").lower()
        if minus or (not prefix and in_quotes is None and re.match(r"-\w", value)):
            raise SearchTextError(
                f"{quoted(match[0])}: a search cannot leave out messages. For the text itself, put "
                "it in quotes."
            )
        if prefix and prefix not in _PREFIXES:
            names = ", ".join(f"{one}:" for one in _PREFIXES)
            raise SearchTextError(
                f"{quoted(prefix + ':')} is not known; there are {names}. For the text itself, put "
                "it in quotes."
            )
        if value:
            found.append(_Token(prefix, value))
    return found


def _with(wanted: MessageSearch, token: _Token) -> MessageSearch:
    match token.prefix:
        case "from":
            sender = token.value if token.value == "<>" else _pattern(token.value)
            return replace(wanted, sender=sender)
        case "to":
            return replace(wanted, to=_pattern(token.value))
        case "subject":
            return replace(wanted, subject=_pattern(token.value))
        case "state":
            state = token.value.lower()
            if state not in MESSAGE_STATES:
                states = ", ".join(MESSAGE_STATES)
                raise SearchTextError(f"state: {quoted(state)} is not a state; there are {states}.")
            return replace(wanted, state=state)
        case "id":
            return replace(wanted, key=token.value)
        case _:
            return replace(wanted, words=(*wanted.words, token.value))


def _pattern(value: str) -> str:
    """Return the pattern of a part of a text; one with `*` is that of the whole text already."""
    return value if "*" in value else f"*{value}*"
