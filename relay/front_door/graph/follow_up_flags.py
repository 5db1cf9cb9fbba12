"""The JSON of a message's flag: Graph's followupFlag, with dates in any time zone.

Dates are shown in UTC. A flag that is complete keeps its dates; a message that is not flagged has
none. A due date needs a start date, which may not be later.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from relay.base.clock import rfc3339
from relay.base.message.time_zones import time_zone
from relay.front_door.graph import errors
from relay.front_door.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
    read_header_text,
    read_object,
)
from relay.front_door.http.errors import ApiError
from relay.store.mailbox.message_state import FollowUpFlag

_STATUSES = ("notFlagged", "flagged", "complete")
_DATES = {
    "startDateTime": "start_us",
    "dueDateTime": "due_us",
    "completedDateTime": "completed_us",
}
_TEXT_CHARACTERS = 64
_SECOND_US = 1_000_000  # dates are shown and stored in whole seconds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def flag_json(flag: FollowUpFlag) -> dict[str, Any]:
    """Return a flag's JSON."""
    dates = {name: getattr(flag, field) for name, field in _DATES.items()}
    fields = {
        name: date_time_json(time_us) for name, time_us in dates.items() if time_us is not None
    }
    return {"flagStatus": flag.status, **fields}


def read_flag(value: object, path: str, *, is_new: bool) -> Mapping[str, Any]:
    """Return the fields of FollowUpFlag that the JSON has; a date that is null is None.

    Raises ApiError. With `is_new` also for values with which a message cannot be created.
    """
    resource = read_object(value, path)
    fields: dict[str, Any] = {}
    if resource.get("flagStatus") is not None:
        fields["status"] = one_of(resource["flagStatus"], f"{path}.flagStatus", _STATUSES)
    for name, field in _DATES.items():
        if name in resource:
            fields[field] = read_date_time(resource[name], f"{path}.{name}")
    if is_new:
        changed_flag(FollowUpFlag(), fields, now_us=0, path=path)
    return fields


def changed_flag(
    before: FollowUpFlag, changes: Mapping[str, Any], *, now_us: int, path: str = "flag"
) -> FollowUpFlag:
    """Return a flag after a change by the fields that read_flag() returned. Raises ApiError 400."""
    status = changes.get("status", before.status)
    dates = {field: changes.get(field, getattr(before, field)) for field in _DATES.values()}
    start_us, due_us, completed_us = dates.values()
    if status == "notFlagged":
        dates_given = (name for name, field in _DATES.items() if changes.get(field) is not None)
        if dated := next(dates_given, ""):
            raise _contradiction(f"{path}.{dated}", "no date, or flagStatus flagged or complete")
        return FollowUpFlag()
    if due_us is not None and start_us is None:
        raise _contradiction(f"{path}.dueDateTime", "startDateTime as well")
    if due_us is not None and start_us is not None and start_us > due_us:
        raise _contradiction(f"{path}.startDateTime", "a time at most that of dueDateTime")
    if status == "complete":
        if completed_us is None:
            completed_us = now_us - now_us % _SECOND_US
        return FollowUpFlag(status, start_us, due_us, completed_us)
    if changes.get("completed_us") is not None:
        raise _contradiction(f"{path}.completedDateTime", "flagStatus complete")
    return FollowUpFlag(status, start_us, due_us)


def _contradiction(path: str, expected: str) -> ApiError:
    """Return Exchange's error for a flag whose values contradict each other (MS-OXWSCORE
    2.2.4.23).
    """
    return errors.INVALID_ARGUMENT(f"{path}: expected {expected}.")


def date_time_json(time_us: int) -> dict[str, str]:
    """Return a dateTimeTimeZone."""
    return {"dateTime": f"{rfc3339(time_us)[:19]}.0000000", "timeZone": "UTC"}


def read_date_time(value: object, path: str) -> int | None:
    """Return a dateTimeTimeZone in microseconds since 1970, in whole seconds; None for null. Raises
    ApiError 400.
    """
    if value is None:
        return None
    resource = read_object(value, path)
    text = read_header_text(resource.get("dateTime"), f"{path}.dateTime", longest=_TEXT_CHARACTERS)
    zone = read_header_text(resource.get("timeZone"), f"{path}.timeZone", longest=_TEXT_CHARACTERS)
    if not text:
        raise missing_property(f"{path}.dateTime")
    try:
        within = time_zone(zone or "UTC")
    except ValueError:
        expected = "a time zone such as Europe/Berlin or W. Europe Standard Time"
        raise invalid_value(f"{path}.timeZone", zone, expected) from None
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=within)).astimezone(UTC)
    except (ValueError, OverflowError):
        expected = "a time such as 2026-12-01T08:00:00"
        raise invalid_value(f"{path}.dateTime", text, expected) from None
    if at < _EPOCH:
        raise invalid_value(f"{path}.dateTime", text, "a time since 1970")
    return (at - _EPOCH) // timedelta(seconds=1) * _SECOND_US
