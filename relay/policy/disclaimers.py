"""The action that adds a disclaimer, and what it does where that is not possible.

relay.mime.disclaimer has the messages; here are the keys of the rule. parse() raises ValueError
that says what was expected. Pure; an edit raises OSError if a large body cannot be read.
RFC 3463 3.7 (5.6.3: the content would have to be converted, and cannot be).
"""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self, TypeVar

from msgspec import Struct

from relay.message.header import ParsedContent
from relay.mime.disclaimer import DisclaimerObstacle, with_disclaimer, wrapped
from relay.mime.disclaimer_text import Disclaimer
from relay.mime.html_tokens import html_layout

Word = TypeVar("Word", bound=StrEnum)
DISCLAIMER_TEXT_MAX = 5000  # characters, as in Exchange
DISCLAIMER_HTML_MAX = 20_000  # characters: its styles take more than its text
NO_DISCLAIMER_STATUS = "5.6.3"
_KEYS = ("text", "html", "where", "fallback")
_EXPECTED = 'a table { text = "For the addressee only" }'
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class DisclaimerPlace(StrEnum):
    """Where it stands in a text."""

    END = "end"
    START = "start"


class DisclaimerFallback(StrEnum):
    """What happens to a message that cannot have it."""

    WRAP = "wrap"  # it is attached to a new message that has it
    IGNORE = "ignore"  # it goes without
    REJECT = "reject"  # it is rejected


class DisclaimerResult(Struct, frozen=True):
    """The new content. `obstacle` says why the disclaimer is not in its texts, "" if it is."""

    content: ParsedContent
    obstacle: str = ""


class DisclaimerAction(Struct, frozen=True):
    """The text and the HTML of the message have a disclaimer, exactly once."""

    text: str
    html: str  # "": made from the text
    where: DisclaimerPlace
    fallback: DisclaimerFallback

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { text, html, where, fallback }; only text is required. Raises ValueError."""
        if not isinstance(value, dict) or set(value) - set(_KEYS):
            raise ValueError(f"{_EXPECTED}; it may also have {', '.join(_KEYS[1:])}")
        text = _text(value.get("text"), "text", DISCLAIMER_TEXT_MAX)
        html = _text(value["html"], "html", DISCLAIMER_HTML_MAX) if "html" in value else ""
        if not html_layout(html).is_whole:
            raise ValueError(
                f"{_EXPECTED}; html: markup that does not end inside a tag, a comment or a script"
            )
        where = _word(value.get("where", "end"), "where", DisclaimerPlace)
        fallback = _word(value.get("fallback", "wrap"), "fallback", DisclaimerFallback)
        return cls(text, html, where, fallback)

    def edit(self, content: ParsedContent) -> DisclaimerResult:
        """Add it; the same content if nothing changes. Reading blocks; raises OSError."""
        disclaimer = _disclaimer(self)
        new = with_disclaimer(content, disclaimer)
        if not isinstance(new, DisclaimerObstacle):
            return DisclaimerResult(new)
        if self.fallback is DisclaimerFallback.WRAP:
            return DisclaimerResult(wrapped(content, disclaimer), new.reason)
        return DisclaimerResult(content, new.reason)


@lru_cache(maxsize=256)  # its words are found once, not for each message
def _disclaimer(action: DisclaimerAction) -> Disclaimer:
    return Disclaimer.of(action.text, action.html, at_start=action.where is DisclaimerPlace.START)


def _text(value: Any, key: str, characters_max: int) -> str:
    if not isinstance(value, str) or _CONTROLS.search(value) or not re.search(r"\w", value):
        raise ValueError(f"{_EXPECTED}; {key}: a text with a word and without control characters")
    if len(value) > characters_max:
        raise ValueError(f"{_EXPECTED}; {key}: at most {characters_max} characters")
    return value


def _word(value: Any, key: str, words: type[Word]) -> Word:
    if value not in list(words):
        raise ValueError(f"{_EXPECTED}; {key}: one of {', '.join(words)}")
    return words(value)
