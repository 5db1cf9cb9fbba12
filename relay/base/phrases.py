"""How values and numbers are written in messages to people."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase
from urllib.parse import quote_plus

_SHOWN_LENGTH_MAX = 80
_SECRET_MIN = 8  # characters; a shorter one may be a word of the text
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)  # keeps the length
_BEGINNING = 16  # characters by which a secret is known whose end was cut off


def shown(value: object) -> str:
    """Return a value for a message to people: one line of at most 80 characters."""
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


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a list that the code has as one text."""
    return tuple(text.split())


def printable(text: str) -> str:
    """Return a text on one line; characters that cannot be printed are escaped.

    For example the name of a file, which may contain any character.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def without_login(text: str) -> str:
    """Return a text without the login (user and password) of a URL in it.

    More than the login may be removed, so that no part of a password remains.
    """
    before, _, after = text.rpartition("@")
    scheme, mark, login = before.partition("://")
    if not mark:  # for example a malformed URL
        scheme, mark, login = before.partition(":")
    return f"{scheme}{mark}…@{after}" if login and not login[0].isspace() else text


def hiding(*secrets: str) -> Callable[[str], str]:
    """Return a function that replaces secrets in the words of a host that repeats what it was sent:
    as they are, in Base64, as in a form or a URL, in any case; whole, or without their end.
    """
    long = {secret for secret in secrets if len(secret) >= _SECRET_MIN}
    forms = {form.translate(_LOWER) for secret in long for form in _forms(secret)}
    beginnings = {form[:_BEGINNING] for form in forms}

    def hidden(text: str) -> str:
        lower, past, parts = text.translate(_LOWER), 0, list[str]()
        while places := [at for start in beginnings if (at := lower.find(start, past)) >= 0]:
            at = min(places)
            parts += (text[past:at], "...")
            past = at + max(_common(form, lower[at : at + len(form)]) for form in forms)
        return "".join((*parts, text[past:]))

    return hidden


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms in which a host may repeat a secret. Base64 depends on how many octets are
    before the secret; the letters that have bits of others are left out.
    """
    octets = secret.encode()
    yield from (secret, quote_plus(secret), "".join(f"%{octet:02x}" for octet in octets))
    for before in range(3):
        end = (before + len(octets)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(b"\0" * before + octets).decode()[-(-before * 8 // 6) : end]


def _common(first: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(first, other, strict=False))
    return next((at for at, (one, two) in pairs if one != two), min(len(first), len(other)))


def counted(number: int, noun: str) -> str:
    """Return "1 entry", "2 entries": a number and a noun, which is passed in the singular."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and not noun.endswith(("ay", "ey")):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'x')) else 's'}"


def named(names: Sequence[str], count: int | None = None, *, most: int = 5) -> str:
    """Return the first names and the number of others; `count` is the total if it is larger."""
    more = (count or len(names)) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def table_lines(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Return a line for each row of a table, with columns as wide as their longest cell. `right`
    are the numbers of the columns that end together.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def moment(at: str, now: str) -> str:
    """Return a time of RFC 3339, in UTC: "20:23 UTC", with its date if `now` has another."""
    return f"{at[11:16]} UTC" if at[:10] == now[:10] else f"{at[:10]} {at[11:16]} UTC"


def time_left(seconds: float) -> str:
    """Return the time until an event: "in 1 h 5 min", or "now"."""
    return f"in {time_span(seconds)}" if round(seconds) > 0 else "now"


def time_span(seconds: float) -> str:
    """Return a duration, to the minute: "40 s", "11 min", "1 h 5 min", "2 d 3 h"."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number} {unit}" if number else "")
    return " ".join(filter(None, parts[:2]))


def ahead_text(now: str, advanced_s: float) -> str:
    """Return the end of a sentence about a time: "; the relay's time is …, advanced by 2 h". It is
    "" for a clock that was not advanced. `now` is of RFC 3339, in UTC.
    """
    if advanced_s < 1:  # less only settles
        return ""
    return f"; the relay's time is {now[:19]}Z, advanced by {time_span(advanced_s)}"
