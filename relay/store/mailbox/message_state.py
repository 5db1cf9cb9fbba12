"""The state of a message: what clients change of received mail, and the dates of its flag.

A received message's file never changes, and its name has room for flags only. The rest is a
MessageState, which the file `relay-properties` of the mailbox keeps by the message's id. Its values
replace those of the message's file. Graph's message and followupFlag.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from relay.base.clock import TimeUs
from relay.base.message.properties import ExtendedProperty, MessageProperties

STATE_BYTES_MAX = 64 * 1024
_UNITED_BYTES_MAX = 2 * STATE_BYTES_MAX  # of what united() makes
# What decode_state() takes: a file, or an import, may have anything.
_Line = Annotated[str, Meta(pattern="^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]


class FollowUpFlag(Struct, frozen=True):
    """Graph's followupFlag; times in µs, None without one."""

    status: str = "notFlagged"  # or flagged, complete
    start_us: int | None = None
    due_us: int | None = None
    completed_us: int | None = None


class MessageState(Struct, frozen=True, omit_defaults=True):
    """The state of a message. None leaves a property as the message's file has it.

    Whether a message is flagged is in its file's name, so that other mail programs see it. When one
    of them sets the flag again, the flag is no longer complete.
    """

    categories: tuple[_Line, ...] | None = None  # all of them
    importance: Literal["low", "normal", "high"] | None = None  # low, normal or high
    read_receipt: bool | None = None  # isReadReceiptRequested
    delivery_receipt: bool | None = None  # isDeliveryReceiptRequested
    extended: tuple[ExtendedProperty, ...] | None = None  # all of them
    is_other: bool | None = None  # inferenceClassification
    is_complete: bool = False  # the flag is complete, unless the file's name has it
    start_us: TimeUs | None = None  # of the flag; times in µs
    due_us: TimeUs | None = None  # of the flag
    completed_us: TimeUs | None = None  # of the flag
    flag_us: TimeUs = 0  # when the flag, or one of its dates, was last changed
    modified_us: TimeUs = 0  # when the state was last changed


NO_STATE = MessageState()
_decoder = msgspec.json.Decoder(MessageState)  # not made in threads: see settings_file
_FLAG_FIELDS = ("is_complete", "start_us", "due_us", "completed_us")
# The fields that a draft keeps in its file instead.
CONTENT_FIELDS = ("categories", "importance", "read_receipt", "delivery_receipt", "extended")


def encode_state(state: MessageState) -> bytes:
    """Return the JSON of a state; b"" for NO_STATE."""
    return b"" if state == NO_STATE else msgspec.json.encode(state)


def decode_state(octets: bytes) -> MessageState:
    """Return the state that encode_state() has encoded. Raises ValueError for other octets."""
    if len(octets) > _UNITED_BYTES_MAX:
        raise ValueError(f"{len(octets)} bytes, expected at most {_UNITED_BYTES_MAX}")
    return _decoder.decode(octets) if octets else NO_STATE


def read_state(octets: bytes) -> MessageState:
    """Return a stored state; NO_STATE for a damaged one, which verification reports."""
    try:
        return decode_state(octets)
    except ValueError:
        return NO_STATE


def content_of(state: MessageState) -> Mapping[str, Any]:
    """Return the values that replace those of the message's file: fields of MessageProperties."""
    values = ((name, getattr(state, name)) for name in CONTENT_FIELDS)
    return {name: value for name, value in values if value is not None}


def without_content(state: MessageState) -> MessageState:
    """Return the state of a draft: without the values of content_of(), which are in its file."""
    return replace(state, **dict.fromkeys(CONTENT_FIELDS)) if content_of(state) else state


def with_state(properties: MessageProperties, state: MessageState) -> MessageProperties:
    """Return a message's properties as clients see them."""
    content = content_of(state)
    return replace(properties, **content) if content else properties


def changed_state(before: MessageState, values: Mapping[str, Any], *, now_us: int) -> MessageState:
    """Return a state with other values of some fields; `before` itself if they do not differ."""
    state = replace(before, **values)
    if state == before:
        return before
    is_flag_same = all(getattr(state, name) == getattr(before, name) for name in _FLAG_FIELDS)
    return replace(state, modified_us=now_us, flag_us=before.flag_us if is_flag_same else now_us)


def united(state: bytes, other: bytes) -> bytes:
    """Return the encoded state that two states of the same message make together.

    Each property, and the flag as a whole, has the value that was set later. If the result is too
    large, return the later state.
    """
    if state == other or not (state and other):
        return state or other
    earlier, later = sorted((read_state(state), read_state(other)), key=lambda it: it.modified_us)
    set_later = (*CONTENT_FIELDS, "is_other", "modified_us")
    values = {name: getattr(later, name) for name in set_later}
    values = {name: value for name, value in values.items() if value is not None}
    if later.flag_us >= earlier.flag_us and (later.flag_us or _has_flag(later)):
        values |= {name: getattr(later, name) for name in (*_FLAG_FIELDS, "flag_us")}
    result = encode_state(replace(earlier, **values))
    return result if len(result) <= _UNITED_BYTES_MAX else encode_state(later)


def _has_flag(state: MessageState) -> bool:
    return any(getattr(state, name) for name in _FLAG_FIELDS)


def flag_of(state: MessageState, *, is_flagged: bool) -> FollowUpFlag:
    """Return the flag of a message. `is_flagged`: its file has the flag F."""
    if is_flagged:
        return FollowUpFlag("flagged", state.start_us, state.due_us)
    if state.is_complete:
        return FollowUpFlag("complete", state.start_us, state.due_us, state.completed_us)
    return FollowUpFlag()
