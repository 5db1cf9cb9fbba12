"""GET and POST /relay/v1/explain: who may ask, and questions that are not answered."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay.front_door.api import explain
from relay.front_door.api.explain import MESSAGE_BYTES_MAX
from tests.support.api_clients import ApiClients, code
from tests.support.tables import each_row

PATH = "/relay/v1/explain?address=bob@other.test"
MESSAGE = b"Subject: x\n\nbody\n"


def messages(**more: str) -> dict[str, str]:
    return {"content-type": "message/rfc822"} | more


@pytest.mark.parametrize(
    ("token", "status"), [("nobody", 401), ("alice", 403), ("watcher", 200), ("operator", 200)]
)
async def test_roles_that_see_the_queue_may_ask(api: ApiClients, token: str, status: int) -> None:
    answers = [await api.get(PATH, token)]
    headers = messages(authorization=f"Bearer {token}")
    answers.append(await api.http.post(PATH, headers=headers, content=MESSAGE))
    assert [answer.status_code for answer in answers] == [status, status]
    assert (await api.http.get(PATH)).status_code == 401


async def test_a_question_has_address_sender_client_and_message(api: ApiClients) -> None:
    full = f"{PATH.upper().replace('ADDRESS', 'address')}&from=me@a.test&ip=2001:DB8::1"
    full = full.replace("/RELAY/V1/EXPLAIN", "/relay/v1/explain")
    await api.control.get(full)
    await api.control.get("/relay/v1/explain?address=postmaster&from=<>")
    await api.control.post(PATH, headers=messages(), content=MESSAGE)
    await api.control.post(PATH, content=b"")
    assert api.records.asked == [
        ("explain", "BOB@other.test", "me@a.test", "2001:db8::1", None, False),
        ("explain", "postmaster", "", "", None, False),
        ("explain", "bob@other.test", "", "", b"Subject: x\r\n\r\nbody\r\n", False),
        ("explain", "bob@other.test", "", "", None, False),
    ]


@each_row(
    "query, text",
    [
        ("", "address: found nothing, expected the address of a recipient."),
        ("?address=", "address: found nothing, expected the address of a recipient."),
        ("?address=bob", "address: expected local-part@domain, found 'bob'."),
        ("?address=a b@c.test", "address: "),
        (f"?address={'x' * 5000}@c.test", "address: "),
        ("?address=a@b.test&from=bob", "from: expected local-part@domain, found 'bob'."),
        ("?address=a@b.test&ip=localhost", "ip: found 'localhost', expected an IP address."),
        ("?address=a@b.test&ip=127.0.0.1/8", "ip: found '127.0.0.1/8', expected an IP address."),
        ("?address=a@b.test&probe=yes", "probe: found 'yes', expected true or false."),
        ("?address=a@b.test&address=c@d.test", "The parameter 'address' is given twice."),
        (
            "?adress=a@b.test",
            "The parameter 'adress' is unknown; expected: address, from, ip, probe.",
        ),
    ],
)
async def test_a_bad_question_says_what_is_expected(api: ApiClients, query: str, text: str) -> None:
    answer = await api.control.get(f"/relay/v1/explain{query}")
    assert code(answer) == (400, "BadRequest")
    assert answer.json()["error"]["message"].startswith(text)
    assert api.records.asked == []


@each_row(
    "headers, content, status",
    [
        (messages(), b"no header at all", 400),
        ({"content-type": "application/json"}, b"{}", 415),
        ({}, MESSAGE, 415),
        (messages(**{"content-length": str(100 << 20)}), MESSAGE, 413),
        (messages(**{"content-encoding": "gzip"}), MESSAGE, 415),
    ],
)
async def test_a_bad_message_is_refused(api: ApiClients, headers, content, status) -> None:
    answer = await api.control.post(PATH, headers=headers, content=content)
    assert answer.status_code == status
    assert api.records.asked == []


async def test_a_message_over_the_limit_is_not_kept(api: ApiClients) -> None:
    sent = 0

    async def body():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * (1 << 20)

    answer = await api.control.post(PATH, headers=messages(), content=body())
    assert code(answer) == (413, "RequestEntityTooLarge")
    assert str(MESSAGE_BYTES_MAX) in answer.json()["error"]["message"]
    assert api.records.asked == []


@pytest.mark.parametrize(
    ("token", "status"), [("nobody", 401), ("alice", 403), ("watcher", 403), ("operator", 200)]
)
async def test_a_probe_is_for_operators_by_post(api: ApiClients, token: str, status: int) -> None:
    path, headers = f"{PATH}&probe=true", {"authorization": f"Bearer {token}"}
    assert (await api.http.post(path, headers=headers)).status_code == status
    asked = [("explain", "bob@other.test", "", "", None, True)] if status == 200 else []
    assert api.records.asked == asked
    if status == 200:
        answer = await api.get(path, token)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert api.records.asked == asked


async def test_questions_wait_for_their_turn_and_then_are_a_503(
    api: ApiClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.records.allowed.clear()
    waiting = [asyncio.create_task(api.control.get(PATH)) for _ in range(9)]
    async with asyncio.timeout(120):
        while len(api.records.asked) < 4:
            await api.records.looks.get()
    waiting.append(asyncio.create_task(api.get(PATH, "watcher")))
    async with asyncio.timeout(120):
        while len(api.records.asked) < 5:
            await api.records.looks.get()
    monkeypatch.setattr(explain, "TURN_S", 0.01)
    answer = await api.control.get(PATH)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    api.records.allowed.set()
    assert {(await one).status_code for one in waiting} == {200}
    assert (await api.control.get(PATH)).status_code == 200


async def test_a_client_that_is_slow_keeps_nobody_waiting(api: ApiClients) -> None:
    slow = [Slow(api, MESSAGE) for _ in range(9)]  # more than questions at once
    for one in slow:
        await one.begun.wait()
    answer = await api.control.post(PATH, headers=messages(), content=MESSAGE)
    assert answer.status_code == 200
    assert (await api.control.get(PATH)).status_code == 200
    for one in slow:
        one.goes_on.set()
        assert (await one.answer).status_code == 200


async def test_accounts_share_the_memory_for_messages_that_arrive(api: ApiClients) -> None:
    """The second message of an account waits unread while it keeps the end of the first back."""
    large = MESSAGE + b"x" * (MESSAGE_BYTES_MAX - len(MESSAGE))
    first, second = [Slow(api, large, authorization="Bearer watcher") for _ in range(2)]
    await first.begun.wait()
    for _ in range(3):
        answer = await api.control.post(PATH, headers=messages(), content=MESSAGE)
        assert answer.status_code == 200
    assert not second.begun.is_set()
    for one in (first, second):
        await one.begun.wait()
        one.goes_on.set()
        assert (await one.answer).status_code == 200


class Slow:
    """A client that sends a message and keeps its end back until `goes_on`."""

    def __init__(self, api: ApiClients, message: bytes, **fields: str) -> None:
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()
        client = api.http if fields else api.control
        headers = messages(**fields) | {"content-length": str(len(message))}
        self.answer = asyncio.create_task(
            client.post(PATH, headers=headers, content=self._body(message))
        )

    async def _body(self, message: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(message), 1 << 18):
            yield message[at : at + (1 << 18)]
        self.begun.set()
        await self.goes_on.wait()


async def test_rules_that_take_too_long_are_a_503(api: ApiClients) -> None:
    api.records.fault = TimeoutError()
    answer = await api.control.get(PATH)
    assert answer.status_code == 503
    assert "451 4.7.1" in answer.json()["error"]["message"]
