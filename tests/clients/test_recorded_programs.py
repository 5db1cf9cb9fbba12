"""Requests as the programs of test_programs.py have sent them, without these programs.

In the files of recorded/, `{3/value/0/id}` is what the answer to request 3 has there, with `%` before it
percent-encoded; `{user}` and `{to}` are addresses. The first line has the headers of most requests.
Left out: signing in, subscribing, and reading the same again. `reads` are extended properties that the
program finds in the answer; `*` is any value. DavMail (Java) sent its requests for IMAP, then SMTP;
those of Zammad (Ruby) are as its lib/microsoft_graph.rb writes them.
"""

import base64
import json
import re
from email import message_from_bytes
from functools import partial, reduce
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.clients.conftest import ServedRelay, User
from tests.clients.program_flows import SENT, received
from tests.support.relay_process import until

RECORDED = Path(__file__).with_name("recorded")
_NAME = re.compile(r"\{(%?)((?:user|to|\d+/[^{}]+))\}")


class Replay:
    """Requests of a program to a user's mailbox, and the answers to them so far."""

    def __init__(
        self, served: ServedRelay, user: User, headers: dict[str, str], *, is_strict: bool
    ) -> None:
        self._relay, self._is_strict = served.relay, is_strict
        self._headers = {"authorization": f"Bearer {user.name}"} | headers
        self._known: dict[str, Any] = {"user": user.address, "to": user.sink}

    def send(self, number: int, request: dict[str, Any]) -> bool:
        """Send one; return whether the answer has as many items as it had."""
        content = bytes(request.get("zeros", 0))
        if "mime" in request:
            content = base64.b64encode(self._text(request["mime"]).encode())
        elif "json" in request:
            content = self._text(json.dumps(request["json"])).encode()
        headers = self._headers | request.get("headers", {})
        headers = {name: value for name, value in headers.items() if value is not None}
        if self._is_strict:
            headers["prefer"] = f"relay.strict,{headers.get('prefer', '')}"
        got = self._relay.request(request["method"], self._text(request["path"]), content, headers)
        assert got.status == request["status"], f"{request}: {got.body!r}"
        answer = json.loads(got.body) if got.body.startswith(b"{") else {}
        assert [one["status"] for one in answer.get("responses", [])] == request.get("batch", [])
        self._known[str(number)] = answer
        for place, expected in request.get("reads", {}).items():
            item = reduce(_within, place.split("/"), answer) if place else answer
            found = {one["id"]: one["value"] for one in item["singleValueExtendedProperties"]}
            wanted = {name: found[name] if one == "*" else one for name, one in expected.items()}
            assert {name: found.get(name) for name in expected} == wanted, request
        return "found" not in request or len(answer["value"]) == request["found"]

    def _text(self, text: str) -> str:
        return _NAME.sub(self._value, text)

    def _value(self, found: re.Match[str]) -> str:
        value: Any = reduce(_within, found[2].split("/"), self._known)
        value = re.sub("^http://[^/]+", "", value)  # of a link, the path
        return quote(value, safe="") if found[1] else value


def _within(value: Any, key: str) -> Any:
    return value[int(key) if isinstance(value, list) else key]


REPLAYED = SENT | {"davmail": ["by SMTP"], "zammad": ["RE: Report"]}


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize("name", REPLAYED)
def test_a_program(served: ServedRelay, user: User, name: str, *, is_strict: bool) -> None:
    for count, message in enumerate(received(user.address, user.sink), 1):
        served.relay.submit(user.sink, [user.address], message)
        until("it is there", lambda count=count: len(user.messages("inbox")) == count)
    first, *requests = map(json.loads, (RECORDED / f"{name}.jsonl").read_text().splitlines())
    replay = Replay(served, user, first["headers"], is_strict=is_strict)
    for number, request in enumerate(requests):
        until(f"found: {request}", partial(replay.send, number, request))
    until("all are sent", lambda: user.arrivals() >= len(REPLAYED[name]))
    contents = [message_from_bytes(one.content) for one in served.sink.received(user.sink)]
    assert sorted(str(one["Subject"]) for one in contents) == REPLAYED[name]
