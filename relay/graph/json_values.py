"""Leaves of a JSON document, read with the path to each in the fault.

On the path: the parsers of messages, attachments and action parameters read every value by these.
Holds: text that goes into a header has no control character, line separator or lone surrogate.
Fails: ApiError 400 RequestBodyRead that names the path, what was found and what was expected.
Standards: RFC 8259; RFC 5322 2.2 (what a header body may hold).
"""

import re
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

import msgspec

from relay.http.errors import ApiError, shown
from relay.message.extended import ExtendedPropertyError, canonical_value, time_us

_DANGEROUS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DANGEROUS_IN_BODY = re.compile("[\x00\ud800-\udfff]")

# Small values take many times their size in memory; the largest message has some thousands.
_VALUES_MAX = 100_000
_STRING_OR_SIGN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{,]', re.DOTALL)


def wrong(path: str, found: object, expected: str) -> ApiError:
    """Return the refusal of a value of the wrong type or form."""
    return ApiError(400, "RequestBodyRead", f"{path}: found {shown(found)}, expected {expected}.")


def missing(path: str) -> ApiError:
    """Return the refusal of a body that lacks something."""
    return ApiError(400, "ErrorRequiredPropertyMissing", f"Required property is missing: {path}.")


def unsupported(path: str, what: str) -> ApiError:
    """Return the refusal of something that this relay cannot honour and will not pretend to."""
    return ApiError(501, "NotImplemented", f"{path}: {what}.")


def unknown_property(path: str, resource: str) -> ApiError:
    """Return Graph's refusal of a property that does not exist."""
    return ApiError(
        400,
        "RequestBodyRead",
        f"The property {shown(path)} does not exist on type '{resource}'. Make sure to only use "
        "property names that are defined by the type.",
    )


def json_object(body: bytes) -> dict[str, Any]:
    """Decode a body that must be a JSON object.

    Raises ApiError 400 UnableToDeserializePostBody.
    """
    if _has_too_many_values(body):
        raise _unreadable(f"it has more than {_VALUES_MAX} values")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 (byte {error.start} of a string)"
    except msgspec.MsgspecError as error:
        reason = str(error) if body.strip() else "it is empty"
    else:
        if isinstance(value, dict):
            return value
        reason = f"expected an object, found {shown(value)}"
    raise _unreadable(reason)


def _has_too_many_values(body: bytes) -> bool:
    """Count what begins a value, first all of it and only then without what is in strings."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= _VALUES_MAX:
        return False
    signs = (found for found in _STRING_OR_SIGN.finditer(body) if found.end() - found.start() == 1)
    return next(islice(signs, _VALUES_MAX, None), None) is not None


def _unreadable(reason: str) -> ApiError:
    message = f"The request body cannot be read as JSON: {reason}."
    return ApiError(400, "UnableToDeserializePostBody", message)


def an_object(value: object, path: str) -> dict[str, Any]:
    """Return `value` if it is an object."""
    if not isinstance(value, dict):
        raise wrong(path, value, "an object")
    return value


def an_array(value: object, path: str, *, most: int | None = None) -> list[Any]:
    """Return `value` if it is an array of at most `most` items; null is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(path, value, "an array")
    if most is not None and len(value) > most:
        message = f"{path}: found {len(value)} items, expected at most {most}."
        raise ApiError(400, "ErrorInvalidRequest", message)
    return value


def a_text(value: object, path: str) -> str:
    """Return `value` if it is a string; null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong(path, value, "a string")
    return value


def a_boolean(value: object, path: str) -> bool:
    """Return `value` if it is true or false, also as a string: Graph's own examples have it so."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise wrong(path, value, "true or false")


def a_time_us(value: object, path: str) -> int:
    """Return the microseconds since 1970 of a DateTimeOffset."""
    try:
        return time_us(canonical_value("SystemTime", a_text(value, path)))
    except ExtendedPropertyError:
        raise wrong(path, value, "a time such as 2026-12-01T08:00:00Z") from None


def one_of(value: object, path: str, choices: tuple[str, ...]) -> str:
    """Return the choice that `value` means, in any case."""
    text = a_text(value, path).lower()
    if text not in choices:
        raise wrong(path, value, f"one of {', '.join(choices)}")
    return text


def header_text(value: object, path: str, *, longest: int) -> str:
    """Return a string that may stand in a header field: one line, no control characters."""
    text = a_text(value, path)
    if found := _DANGEROUS.search(text):
        raise ApiError(
            400,
            "ErrorInvalidRequest",
            f"{path}: found the character U+{ord(found[0]):04X} at position {found.start()}; "
            "control characters and line breaks are not allowed here.",
        )
    if len(text) > longest:
        message = f"{path}: found {len(text)} characters, expected at most {longest}."
        raise ApiError(400, "ErrorInvalidRequest", message)
    return text


def body_text(value: object, path: str) -> str:
    """Return a string that may stand in a body: anything but NUL and halves of characters."""
    text = a_text(value, path)
    if text.isascii() and "\0" not in text:
        return text  # most are, and the search takes 100 ms for 30 MB
    if found := _DANGEROUS_IN_BODY.search(text):
        raise ApiError(
            400,
            "ErrorInvalidRequest",
            f"{path}: found the character U+{ord(found[0]):04X} at position {found.start()}, which "
            "no mail can carry.",
        )
    return text


def only_known(given: dict[str, Any], known: tuple[str, ...], *, path: str, resource: str) -> None:
    """Refuse a property that an object does not have."""
    for name in given:
        if name not in known and not is_annotation(name):
            raise unknown_property(f"{path}.{name}", resource)


def is_annotation(name: str) -> bool:
    """Whether a property name is an OData annotation, which says nothing that we need."""
    return "@" in name


_ID_CHARACTERS = 512


def read_parameters(body: Mapping[str, Any], known: Collection[str], action: str) -> dict[str, Any]:
    """Return the parameters that are given, by their names in lower case, as `known` has them.

    Raises ApiError 400 for one that `action` has not, or that is given twice.
    """
    given: dict[str, Any] = {}
    for name, value in body.items():
        if is_annotation(name):
            continue
        folded = name.lower()
        if folded not in known:
            raise unknown_property(name, action)
        if folded in given:
            raise wrong(name, value, "each parameter once, whatever its case")
        given[folded] = value
    return given


def destination_id(body: Mapping[str, Any], action: str) -> str:
    """Return the only parameter of move and copy: a folder's id or well-known name."""
    given = read_parameters(body, ("destinationid",), action)
    identifier = header_text(given.get("destinationid"), "destinationId", longest=_ID_CHARACTERS)
    if not identifier:
        raise missing("destinationId")
    return identifier
