"""Short looks at a journey (`GET /relay/v1/messages/{id}`), and made ones."""

from typing import Any

import msgspec
from msgspec import convert, to_builtins

from relay.base.message.envelope import Client
from relay.store.journeys.document import Journey

_JOURNEY = {
    "id": None,
    "graph_id": None,
    "submission_id": None,
    "message_id": "",
    "sender": "",
    "subject": "",
    "state": "queued",
    "client": to_builtins(Client()),
}
_STEP = {"name": "", "at": "", "detail": {}}
_ATTEMPT = {"at": "", "host": "", "outcome": "", "status": "", "reply": "", "tls": ""}


def made_journey(**facts: Any) -> Journey:
    """Return a journey with these facts of its JSON; others have neutral values."""
    steps = [_STEP | one for one in facts.pop("steps", ())]
    recipients = [
        one | {"attempts": [_ATTEMPT | each for each in one.get("attempts", ())]}
        for one in facts.pop("recipients", ())
    ]
    return convert(_JOURNEY | facts | {"steps": steps, "recipients": recipients}, Journey)


def json_of(journey: Journey) -> dict[str, Any]:
    """Return what a client reads of a journey."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(journey))
    return found


def states(journey: Journey | dict[str, Any]) -> dict[str, str]:
    """Return the state of each recipient."""
    return {one.address: one.state for one in convert(journey, Journey).recipients}


def outcomes(journey: Journey | dict[str, Any], address: str) -> list[str]:
    """Return the outcomes of a recipient's attempts."""
    recipients = convert(journey, Journey).recipients
    (one,) = (each for each in recipients if each.address == address)
    return [attempt.outcome for attempt in one.attempts]
