"""How values and numbers are written in messages to people."""

from collections.abc import Sequence

_SHOWN_LENGTH_MAX = 80


def shown(value: object) -> str:
    """Return a value as a message shows it: one line of at most 80 characters."""
    match value:
        case bool():
            text = str(value).lower()
        case str():
            value = without_login(value)
            text = ascii(value) if not value.isprintable() else f'"{value}"'
        case None:
            return "nothing"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            text = str(value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[:_SHOWN_LENGTH_MAX]}…"


def printable(text: str) -> str:
    """Return a text on one line, with escapes in place of line feeds and the like: a file may have
    any name.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def without_login(text: str) -> str:
    """Return a text without the login of the URL in it, where it has one: user and password.

    What is taken for a login may be more than that: no text may have a part of a password.
    """
    before, _, after = text.rpartition("@")
    scheme, mark, login = before.partition("://")
    if not mark:  # as a URL that is written badly
        scheme, mark, login = before.partition(":")
    return f"{scheme}{mark}…@{after}" if login and not login[0].isspace() else text


def counted(number: int, noun: str) -> str:
    """Return "1 entry", "2 entries": a number and its noun, which is given in the singular."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and not noun.endswith(("ay", "ey")):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'x')) else 's'}"


def named(names: Sequence[str], count: int | None = None, *, most: int = 5) -> str:
    """Return the first names, and how many more there are; `count` is the total, if larger."""
    more = (count or len(names)) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def moment(at: str, now: str) -> str:
    """Return a time of RFC 3339, in UTC: "20:23 UTC", with its date if `now` has another."""
    return f"{at[11:16]} UTC" if at[:10] == now[:10] else f"{at[:10]} {at[11:16]} UTC"


def time_left(seconds: float) -> str:
    """Return the time until something: "in 1 h 5 min"; "now" if it is over."""
    return f"in {time_span(seconds)}" if round(seconds) > 0 else "now"


def time_span(seconds: float) -> str:
    """Return a time, to the minute: "40 s", "11 min", "1 h 5 min", "2 d 3 h"."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number} {unit}" if number else "")
    return " ".join(filter(None, parts[:2]))
