"""Who may use /relay/v1 of `relay dev`: every program of this machine, and no page of another site.

`--private` and `--token` ask for a token, as a service does (test_life.py, test_dev_exposed.py).
"""

import base64
import http.client
import json

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import Answer
from tests.support.ports import free_port
from tests.support.relay_process import until

LIST = "/relay/v1/messages"
APP, ANN = "noreply@myapp.io", "ann@customer.example"
TOKENS = ("", "Bearer alice", "Bearer", "Bearer a.b.c", f"Bearer {'x' * 20_000}", "Basic eDp5", "?")
FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Host": "evil.example"},  # DNS rebinding
    {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Host": "192.0.2.7"},
)
CALLS = (
    ("GET", LIST, b""),
    ("GET", f"{LIST}/last", b""),
    ("GET", f"{LIST}/last/source", b""),
    ("GET", f"{LIST}/last/wait?timeout=0", b""),
    ("GET", "/relay/v1/events?after=0", b""),
    ("GET", "/relay/v1/queue", b""),
    ("GET", "/RELAY/v1/refused", b""),
    ("POST", "/relay/v1/queue/cancel", b'{"all": true}'),
    ("POST", f"{LIST}/last/release", b""),
    ("POST", "/relay/v1/dev/clock", b'{"advance_s": 1}'),
    ("PUT", "/relay/v1/dev/internet", b""),
    ("DELETE", f"{LIST}/last", b""),
    ("DELETE", LIST, b""),
    ("OPTIONS", LIST, b""),
    ("GET", "/%72elay/v1/%6Dessages", b""),  # other spellings
    ("GET", "//relay/v1//messages", b""),
    ("GET", "/api/v1/messages", b""),  # Mailpit's
    ("DELETE", "/api/v1/messages", b""),
    ("POST", "/api/v1/send", b"{}"),
    ("PUT", "/api/v1/messages", b"{}"),
    ("POST", "/%6dcp", b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'),
)


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo")


@pytest.fixture(scope="module")
def private(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--private")


def ask(relay: DevProcess, method: str, path: str, body: bytes = b"", **fields: str) -> Answer:
    return relay.request(method, path, body or None, {**fields})


def send(relay: DevProcess, subject: str, sender: str = APP) -> str:
    return relay.submit(sender, [ANN], f"From: {sender}\r\nSubject: {subject}\r\n\r\nx".encode())


def subjects(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [one["subject"] for one in answer.json()["messages"]]


@pytest.mark.parametrize("authorization", TOKENS)
def test_the_usual_program_sees_its_mail(relay: DevProcess, authorization: str) -> None:
    """It sends by SMTP as nobody in particular, and asks with any token or none."""
    fields = {"Authorization": authorization} if authorization else {}
    assert ask(relay, "DELETE", LIST, **fields).status == 200
    key = send(relay, "Welcome")
    assert subjects(ask(relay, "GET", f"{LIST}?subject=Welcome&wait=10", **fields)) == ["Welcome"]
    assert ask(relay, "GET", f"{LIST}/{key}/source", **fields).body.endswith(b"\r\n\r\nx\r\n")
    waited = ask(relay, "GET", f"{LIST}/{key}/wait?state=captured", **fields)
    assert waited.json()["reached"] is True
    held = ask(relay, "POST", "/relay/v1/queue/cancel", b'{"all": true}', **fields)
    assert (held.status, held.json()["done"]) == (200, 1), held.body
    journey = ask(relay, "GET", f"{LIST}/{key}", **fields).json()
    assert (journey["state"], journey["steps"][-1]["detail"]["who"]) == ("cancelled", "development")
    for path in ("queue/stats", "pause", "refused", "explain?address=bob@example.test", "log"):
        assert ask(relay, "GET", f"/relay/v1/{path}", **fields).status == 200, path


def test_events_need_no_token(relay: DevProcess) -> None:
    connection = http.client.HTTPConnection(*relay.http, timeout=120)
    connection.request("GET", "/relay/v1/events")
    stream = connection.getresponse()
    key = send(relay, "An event")
    while f'"message":"{key}"'.encode() not in (line := stream.readline()):
        assert line, "the stream ended"
    connection.close()


def test_other_addresses_of_loopback_are_this_machine(relay: DevProcess) -> None:
    connection = http.client.HTTPConnection(*relay.http, source_address=("127.0.0.2", 0))
    connection.request("GET", LIST)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("authorization", ["", "Bearer alice", "Basic eDp5"])
@pytest.mark.parametrize("fields", FOREIGN)
def test_pages_of_other_sites_are_refused(
    relay: DevProcess, fields: dict[str, str], authorization: str
) -> None:
    """Also with what a browser knows from an earlier login, which it sends by itself."""
    key = send(relay, "Stays")
    given = fields | ({"Authorization": authorization} if authorization else {})
    before = ask(relay, "GET", "/relay/v1/dev/clock").json()["advanced_s"]
    for method, path, body in CALLS:
        answer = relay.request(method, path, body or None, given)
        assert answer.status in (403, 421), (method, path, answer.body)
        assert "access-control-allow-origin" not in answer.headers
    until(
        "it is captured", lambda: ask(relay, "GET", f"{LIST}/{key}").json()["state"] == "captured"
    )
    assert ask(relay, "GET", "/relay/v1/dev/clock").json()["advanced_s"] == before


def test_private_asks_for_a_token_and_shows_an_account_its_own(private: DevProcess) -> None:
    theirs, hers = send(private, "of the app"), send(private, "of alice", "alice@example.test")
    for method, path, body in CALLS:
        assert private.request(method, path, body or None).status == 401, (method, path)
    alice = {"Authorization": "Bearer alice"}
    assert subjects(ask(private, "GET", LIST, **alice)) == ["of alice"]
    assert ask(private, "GET", f"{LIST}/{hers}", **alice).status == 200
    assert ask(private, "GET", f"{LIST}/{theirs}", **alice).status == 404
    assert ask(private, "GET", "/relay/v1/queue", **alice).status == 403
    for method, path, body in CALLS:
        if method == "DELETE" or ("/dev/" in path and method != "GET"):
            answer = private.request(method, path, body or None, alice)
            expected = 401 if path.startswith("/api/") else 403
            assert answer.status == expected, (method, path)
    call = {"name": "advance_clock", "arguments": {"duration": "1h"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = {**alice, "Content-Type": "application/json"}
    answer = private.request("POST", "/mcp", json.dumps(request).encode(), headers)
    assert b"operate" in answer.body
    assert ask(private, "GET", "/relay/v1/dev/clock", **alice).json()["advanced_s"] == 0
    token = private.ready["token"]
    every = subjects(ask(private, "GET", LIST, Authorization=f"Bearer {token}"))
    assert sorted(every) == ["of alice", "of the app"]
    assert ask(private, "GET", "/api/v1/messages", **alice).status == 401
    basic = base64.b64encode(f"any:{token}".encode()).decode()
    assert ask(private, "GET", "/api/v1/messages", Authorization=f"Basic {basic}").status == 200


def test_smtp_and_pages_are_as_before_with_private(private: DevProcess) -> None:
    with private.smtp() as session:
        session.login("anything", "goes")
    assert ask(private, "GET", "/").status == 200


def test_the_listener_for_metrics_is_guarded_too(kit) -> None:
    """The test kit may configure one; it has /relay/v1 as well."""
    at = f"127.0.0.1:{free_port()}"
    kit(config={"observe": {"metrics": at}})
    for fields, status in (({}, 200), *((one, None) for one in FOREIGN)):
        for token in ({}, {"Authorization": "Bearer alice"}):
            connection = http.client.HTTPConnection(at, timeout=120)
            connection.request("GET", LIST, headers={**fields, **token})
            found = connection.getresponse().status
            assert found == status if status else found in (403, 421), fields
            connection.close()
