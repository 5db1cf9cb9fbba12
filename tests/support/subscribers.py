"""Subscriptions to a relay that runs: requests for them, and receivers that it trusts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.graph_client import Answer
from tests.support.receiver import Receiver
from tests.support.relay_process import RelayProcess
from tests.support.tls import Authority

LOOPBACK = {"http": {"notification_networks": ["127.0.0.0/8"]}}


def trusting(authority: Authority) -> dict[str, str]:
    """The environment of a relay that trusts the tests' CA."""
    return {"SSL_CERT_FILE": str(authority.certificate)}


def local_receiver(authority: Authority, **options: Any) -> Receiver:
    """An HTTPS receiver at 127.0.0.1."""
    return Receiver(authority.issue("IP:127.0.0.1"), **options)


def in_minutes(minutes: float) -> str:
    """A time from now as Graph's clients write it."""
    return (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def wanted(receiver: Receiver, **changed: Any) -> dict[str, Any]:
    """The body of a POST; None removes a property."""
    body = {
        "changeType": "created",
        "notificationUrl": receiver.url("/hook"),
        "resource": "me/mailFolders('inbox')/messages",
        "expirationDateTime": in_minutes(60),
        "clientState": "a secret",
    }
    return {name: value for name, value in (body | changed).items() if value is not None}


def subscribe(
    relay: RelayProcess, receiver: Receiver, *, token: str = "alice", **changed: Any
) -> Answer:
    """POST /subscriptions."""
    return relay.graph("POST", "/subscriptions", wanted(receiver, **changed), token=token)


def subscribed(relay: RelayProcess, receiver: Receiver, **changed: Any) -> str:
    """Subscribe; return the id."""
    answer = subscribe(relay, receiver, **changed)
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])
