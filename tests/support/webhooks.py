"""A receiver of webhooks, which checks the signature of each request by itself."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from tests.support.receiver import Receiver
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess

KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class WebhookReceiver(Receiver):
    """`events` are those that were posted, with their webhook-id as "id"; failed requests too."""

    def __init__(self, *args: Any, key: str = KEY, **options: Any) -> None:
        super().__init__(*args, **options)
        self.status, self._key = 204, key

    @property
    def events(self) -> list[dict[str, Any]]:
        return [checked(header, body, self._key) for _, header, body in list(self.requests)]

    def until(
        self, condition: Callable[[list[dict[str, Any]]], object], *, timeout_s: float = 120
    ) -> list[dict[str, Any]]:
        with self.came:
            assert self.came.wait_for(lambda: condition(self.events), timeout_s), self.events
        return self.events


def checked(header: dict[str, str], body: bytes, key: str = KEY) -> dict[str, Any]:
    """Return the event of a request whose signature is valid."""
    name, at = header["webhook-id"], header["webhook-timestamp"]
    assert abs(int(at) - time.time()) < 300
    text = f"{name}.{at}.".encode() + body
    digest = hmac.new(base64.b64decode(key[6:]), text, hashlib.sha256).digest()
    assert header["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert header["content-type"] == "application/json"
    return json.loads(body) | {"id": name}


def hook(receiver: Receiver, path: str = "/hook", **changed: Any) -> dict[str, Any]:
    """A table [[webhook]]."""
    return {"url": receiver.url(path), "events": ["*"], "secret": KEY} | changed


def recorded(
    relay: RelayProcess, *, silent_s: float = 1, token: str = OPERATOR
) -> list[dict[str, Any]]:
    """The events of GET /relay/v1/events, until none comes for a moment."""
    found = []
    connection = http.client.HTTPConnection(*relay.http, timeout=silent_s)
    headers = {"Authorization": f"Bearer {token}"}
    connection.request("GET", "/relay/v1/events?after=0", headers=headers)
    with suppress(TimeoutError), contextlib.closing(connection), connection.getresponse() as answer:
        found.extend(json.loads(line[6:]) for line in answer if line.startswith(b"data: "))
    return found


def by_message(events: Iterable[dict[str, Any]]) -> dict[tuple[str, bool], list[tuple[int, str]]]:
    """Step and time of the events of each message, each once, in the order of their source.

    The log has steps 1 to 4, and step 4 is later than others. A conversion that is repeated after a
    kill may be later than step 5.
    """
    found = defaultdict(dict)
    for one in events:
        key = one["submission_id"] or one["message"], one["step"] < 5
        found[key][one["step"], one["at"]] = None
    return {key: list(steps) for key, steps in found.items()}
