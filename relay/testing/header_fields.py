"""Read the header fields of any message: Python's parser fails for some that are malformed."""

from collections.abc import Callable
from email.message import EmailMessage
from typing import TypeVar

Found = TypeVar("Found")
_FAULTS = (AttributeError, IndexError, LookupError, TypeError, ValueError)


def field_text(eml: EmailMessage, name: str) -> str:
    """Return the first field of this name, decoded; as it is written if that is impossible; "" for
    none.
    """
    return _read(lambda: str(eml.get(name, "")), lambda: _written(eml, name))


def field_addresses(eml: EmailMessage, name: str) -> list[str]:
    """Return the addresses in a field, none if it cannot be read."""
    return _read(lambda: [one.addr_spec for one in getattr(eml.get(name), "addresses", ())], list)


def _read(read: Callable[[], Found], otherwise: Callable[[], Found]) -> Found:
    try:
        return read()
    except _FAULTS:
        return otherwise()


def _written(eml: EmailMessage, name: str) -> str:
    values = (value for key, value in eml.raw_items() if key.lower() == name.lower())
    return " ".join(str(next(values, "")).encode("utf-8", "replace").decode().split())
