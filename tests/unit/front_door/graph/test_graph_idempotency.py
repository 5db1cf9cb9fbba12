"""Repeated submissions: with an Idempotency-Key, and as SDKs repeat them by themselves."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.base.message.content import read_all
from relay.base.pressure import Pressure, PressureLevel, PressureReason, PressureState
from relay.formats.convert import convert
from relay.front_door.graph import admission, mime_body
from relay.front_door.graph.dependencies import STREAMED_BODIES_MAX
from relay.submission.outbox import idempotency as keys
from relay.submission.outbox.store import FileStore
from tests.support.graph_fakes import AS_ALICE, graph_app, refused, to
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on
from tests.support.tables import each_row

DAY_S = 24 * 3600
MIME = b"From: alice@example.test\r\nTo: bob@example.test\r\nSubject: as MIME\r\n\r\n"
BIG = MIME + b"0123456789abcdef\r\n" * 100_000  # it is streamed to the disk
SAME = ("x-relay-message-id", "x-relay-submission-id", "x-relay-internet-message-id")
FULL = PressureState({PressureReason.QUEUE: PressureLevel.REFUSE})


@dataclass
class Mailbox:
    """Graph's application on disk, and alice's client."""

    http: httpx.AsyncClient
    store: FileStore
    root: Path
    clock: ManualClock
    pressure: Pressure

    @property
    def pending(self) -> list[Path]:
        found = (self.root / ".submissions").glob("*/*@*")
        return [path for path in found if path.parent.name in ("ready", "deferred")]

    @property
    def subjects(self) -> list[str]:
        made = (convert(one.read_bytes(), now_us=0, hostname="h") for one in self.pending)
        return sorted(str(message_from_bytes(read_all(one.content))["subject"]) for one in made)

    async def send(self, subject: str = "s", **headers: str) -> httpx.Response:
        message = {"subject": subject, "toRecipients": to("bob@example.test")}
        return await self.post("me/sendMail", {"message": message}, **headers)

    async def send_mime(self, content: bytes, **headers: str) -> httpx.Response:
        body = base64.b64encode(content)
        return await self.post("me/sendMail", body, content_type="text/plain", **headers)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(path, headers=given, **(sent if body is not None else {}))

    async def file_all(self) -> None:
        """Step 4 of everything that is pending."""
        for one in await self.store._threads.run(self.store._directory.list_ready, (), 9):
            await self.store.ready.complete(one, queue_id="q")


@pytest.fixture
async def mailbox(tmp_path: Path) -> AsyncIterator[Mailbox]:
    clock, pressure = ManualClock(), Pressure()
    with store_on(tmp_path / "mail", clock) as store:
        transport = httpx.ASGITransport(graph_app(store, clock, pressure=pressure))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://relay.test/v1.0/", headers=AS_ALICE
        ) as http:
            yield Mailbox(http, store, tmp_path / "mail", clock, pressure)


def same(first: httpx.Response, second: httpx.Response) -> bool:
    assert (first.status_code, second.status_code) == (202, 202), (first.text, second.text)
    names = (*SAME, "preference-applied")
    return [first.headers.get(one) for one in names] == [second.headers.get(one) for one in names]


HOW = pytest.mark.parametrize(
    "how", [{"idempotency_key": "k"}, {"retry_attempt": "1"}], ids=["key", "retry"]
)


def first_of(how: dict[str, str]) -> dict[str, str]:
    """The header fields of the first request: an SDK's first attempt has none."""
    return {} if "retry_attempt" in how else how


@HOW
async def test_a_repeat_gets_the_first_answer(mailbox: Mailbox, how: dict[str, str]) -> None:
    prefer = {"prefer": "relay.save-to-sent-items=false"}
    first = await mailbox.send(**first_of(how), **prefer)
    again = [await mailbox.send(**how, **prefer) for _ in range(2)]
    assert all(same(first, one) for one in again)
    assert all(first.headers[one] for one in (*SAME, "preference-applied"))
    assert len(mailbox.pending) == 1


@HOW
@pytest.mark.parametrize(
    "content", [MIME, BIG, MIME.replace(b"\r\n\r\n", b"\r\nMessage-ID: <a@b>\r\n\r\n")]
)
async def test_a_repeat_of_mime(mailbox: Mailbox, how: dict[str, str], content: bytes) -> None:
    first = await mailbox.send_mime(content, **first_of(how))
    assert same(first, await mailbox.send_mime(content, **how))
    assert mailbox.subjects == ["as MIME"]
    other = await mailbox.send_mime(content + b"x\r\n", **how)
    assert other.status_code == (202 if "retry_attempt" in how else 409)
    assert not list((mailbox.root / ".submissions/preparing").iterdir())


@HOW
@pytest.mark.parametrize("filed", [False, True])
async def test_a_repeat_of_send(mailbox: Mailbox, how: dict[str, str], filed: bool) -> None:
    message = {"subject": "s", "toRecipients": to("bob@example.test")}
    draft = (await mailbox.post("me/messages", message)).json()["id"]
    path = f"me/messages/{draft}/send"
    first = await mailbox.post(path, **first_of(how))
    if filed:
        await mailbox.file_all()
    assert same(first, await mailbox.post(path, **how))
    assert first.headers["x-relay-message-id"] == draft
    assert len(mailbox.pending) == (not filed)


@HOW
@pytest.mark.parametrize("action", ["reply", "replyAll", "forward"])
async def test_a_repeat_of_a_reply(mailbox: Mailbox, how: dict[str, str], action: str) -> None:
    letter = MIME.replace(b"alice@", b"carol@")
    await mailbox.store.deliver("alice@example.test", unique="1", content=letter)
    (original,) = (await mailbox.http.get("me/messages")).json()["value"]
    body = {"Comment": "yes", **({"ToRecipients": to("x@y.test")} if action == "forward" else {})}
    path = f"me/messages/{original['id']}/{action}"
    first = await mailbox.post(path, body, **first_of(how))
    await mailbox.http.delete(f"me/messages/{original['id']}")
    assert same(first, await mailbox.post(path, body, **how))
    assert len(mailbox.pending) == 1


@HOW
async def test_a_repeat_of_a_scheduled_send(mailbox: Mailbox, how: dict[str, str]) -> None:
    due = [{"id": "SystemTime 0x3FEF", "value": "2099-01-01T00:00:00Z"}]
    message = {"toRecipients": to("b@example.test"), "singleValueExtendedProperties": due}
    body = {"message": message}
    first = await mailbox.post("me/sendMail", body, **first_of(how))
    assert same(first, await mailbox.post("me/sendMail", body, **how))
    path = f"me/messages/{first.headers['x-relay-message-id']}/send"
    again = await mailbox.post(path, idempotency_key="other")
    assert same(again, await mailbox.post(path, idempotency_key="other"))
    assert [one.parent.name for one in mailbox.pending] == ["deferred"]


@HOW
async def test_repeats_at_the_same_time_wait_for_the_first(
    mailbox: Mailbox, how: dict[str, str]
) -> None:
    answers = await asyncio.gather(
        mailbox.send(**first_of(how)), *(mailbox.send(**how) for _ in range(5))
    )
    assert all(same(answers[0], one) for one in answers)
    assert len(mailbox.pending) == 1


@HOW
async def test_a_repeat_is_answered_under_pressure(mailbox: Mailbox, how: dict[str, str]) -> None:
    first = await mailbox.send(**first_of(how))
    mailbox.pressure.state = FULL
    assert same(first, await mailbox.send(**how))
    assert (await mailbox.send("other", **(how | {"idempotency_key": "other"}))).status_code == 503


@HOW
async def test_a_repeat_is_answered_at_the_limit_of_the_account(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, how: dict[str, str]
) -> None:
    first = await mailbox.send(**first_of(how))
    monkeypatch.setattr(admission, "REQUESTS_PER_ACCOUNT_MAX", 0)
    assert same(first, await mailbox.send(**how))
    assert (await mailbox.send("other", **(how | {"idempotency_key": "other"}))).status_code == 429


@HOW
async def test_another_account_has_its_own(mailbox: Mailbox, how: dict[str, str]) -> None:
    body = {"message": {"toRecipients": to("bob@example.test")}}
    first = await mailbox.post("me/sendMail", body, **first_of(how))
    as_bob = await mailbox.post("me/sendMail", body, authorization="Bearer bob", **how)
    assert not same(first, as_bob)
    assert len(mailbox.pending) == 2


@HOW
async def test_a_repeat_that_differs_is_another_request(
    mailbox: Mailbox, how: dict[str, str]
) -> None:
    await mailbox.send(**first_of(how))
    other = (
        await mailbox.send("another", **how),
        await mailbox.send(**how, prefer="relay.save-to-sent-items=false"),
        await mailbox.post("users/alice@example.test/sendMail?$x=1", {"message": {}}, **how),
    )
    if "idempotency_key" in how:
        for answer in other:
            assert "another request" in refused(answer, 409, "ErrorIrresolvableConflict")
        assert mailbox.subjects == ["s"]
    else:
        assert [answer.status_code for answer in other] == [202, 202, 400]
        assert mailbox.subjects == ["another", "s", "s"]


@HOW
async def test_what_was_not_accepted_is_not_remembered(
    mailbox: Mailbox, how: dict[str, str]
) -> None:
    assert (await mailbox.post("me/sendMail", {"message": {}}, **first_of(how))).status_code == 400
    first = await mailbox.send(**how)
    assert same(first, await mailbox.send(**how))
    assert len(mailbox.pending) == 1


@pytest.mark.parametrize(
    ("how", "kept_s", "forgotten_s"),
    [({"idempotency_key": "k"}, DAY_S, DAY_S + 3600), ({"retry_attempt": "1"}, 299, 301)],
)
async def test_how_long_it_is_remembered(
    mailbox: Mailbox, how: dict[str, str], kept_s: int, forgotten_s: int
) -> None:
    first = await mailbox.send(**first_of(how))
    mailbox.clock.advance(kept_s)
    assert same(first, await mailbox.send(**how))
    mailbox.clock.advance(forgotten_s - kept_s)
    second = await mailbox.send(**how)
    assert not same(first, second)
    assert same(second, await mailbox.send(**how))
    assert len(mailbox.pending) == 2


# -- Idempotency-Key


@each_row("key", ["", " ", "a b", "é".encode().decode("latin-1"), "k" * 256])
async def test_a_malformed_key_is_400(mailbox: Mailbox, key: str) -> None:
    sent = {"idempotency-key": key.encode("latin-1"), "content-type": b"application/json"}
    answer = await mailbox.http.post("me/sendMail", content=b"{}", headers=sent)
    assert "Idempotency-Key: found" in refused(answer, 400, "BadRequest")
    answer = await mailbox.http.post("$batch", content=b"{}", headers=sent)
    assert "Idempotency-Key: found" in refused(answer, 400, "BadRequest")


async def test_the_keys_of_an_account_are_limited(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEYS_PER_ACCOUNT_MAX", 2)
    for key in "ab":
        assert (await mailbox.send(idempotency_key=key)).status_code == 202
    answer = await mailbox.send(idempotency_key="c")
    assert "2 idempotency keys" in refused(answer, 503, "ResourceUnhealthy")
    assert int(answer.headers["retry-after"]) > 0
    assert (await mailbox.send(idempotency_key="a")).status_code == 202
    assert (await mailbox.send()).status_code == 202
    assert len(mailbox.pending) == 3
    mailbox.clock.advance(DAY_S + 3600)
    assert (await mailbox.send(idempotency_key="c")).status_code == 202


async def test_a_batch_gives_its_key_to_its_requests(mailbox: Mailbox) -> None:
    body = {"message": {"toRecipients": to("bob@example.test")}}
    item = {"method": "POST", "url": "/me/sendMail", "body": body}
    own = {"headers": {"Idempotency-Key": "own"}}
    items = {"requests": [{"id": "1", **item}, {"id": "2", **item}, {"id": "3", **item, **own}]}
    first, again = [
        (await mailbox.post("$batch", items, idempotency_key="k")).json() for _ in range(2)
    ]
    for one, other in zip(first["responses"], again["responses"], strict=True):
        assert one["status"] == 202
        assert [one["headers"][name] for name in SAME] == [other["headers"][n] for n in SAME]
    alone = await mailbox.post("me/sendMail", body, idempotency_key="own")
    assert alone.status_code == 409  # the first had another URL
    assert len(mailbox.pending) == 3


async def test_the_id_in_a_batch_is_not_part_of_a_request_with_its_own_key(
    mailbox: Mailbox,
) -> None:
    """SDKs give the requests of a batch new ids when it is built again."""
    body = {"message": {"toRecipients": to("bob@example.test")}}
    headers = {"Idempotency-Key": "own"}
    item = {"method": "POST", "url": "/me/sendMail", "body": body, "headers": headers}
    batches = [[{"id": "1", **item}, {"id": "2", **item}], [{"id": "3", **item}]]
    answers = [(await mailbox.post("$batch", {"requests": batch})).json() for batch in batches]
    responses = [one for answer in answers for one in answer["responses"]]
    assert [one["status"] for one in responses] == [202, 202, 202]
    assert len({one["headers"]["x-relay-message-id"] for one in responses}) == 1
    assert len(mailbox.pending) == 1


# -- Retry-Attempt


async def test_two_equal_messages_are_two_messages(mailbox: Mailbox) -> None:
    assert not same(await mailbox.send(), await mailbox.send())
    assert not same(await mailbox.send(), await mailbox.send(retry_attempt="0"))
    assert len(mailbox.pending) == 4


async def test_the_repeat_of_a_rejected_request_is_a_message(mailbox: Mailbox) -> None:
    """It equals one that was accepted before it, as the messages of a monitor do."""
    first = await mailbox.send()
    mailbox.pressure.state = FULL
    assert (await mailbox.send()).status_code == 503
    assert (await mailbox.send(retry_attempt="1")).status_code == 503
    mailbox.pressure.state = PressureState()
    second = await mailbox.send(retry_attempt="2")
    assert not same(first, second)
    assert same(second, await mailbox.send(retry_attempt="3"))
    assert len(mailbox.pending) == 2


async def test_the_repeat_of_a_request_that_found_no_place_is_a_message(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[None] = []

    async def kept_back() -> AsyncIterator[bytes]:
        begun.append(None)
        yield b"aaaa"
        await asyncio.Event().wait()

    first = await mailbox.send_mime(BIG)
    monkeypatch.setattr(mime_body, "ROOM_WAIT_S", 0.01)
    fields = {"content-type": "text/plain"}
    held = [
        asyncio.create_task(mailbox.http.post("me/sendMail", content=kept_back(), headers=fields))
        for _ in range(STREAMED_BODIES_MAX // 2)
    ]
    async with asyncio.timeout(120):
        while len(begun) < len(held):
            await asyncio.sleep(0.001)
    assert (await mailbox.send_mime(BIG)).status_code == 503
    for one in held:
        one.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert not same(first, await mailbox.send_mime(BIG, retry_attempt="1"))


async def test_a_repeat_of_large_mime_that_is_rejected_is_no_other_message(
    mailbox: Mailbox,
) -> None:
    """Its response was lost; the next repeat meets pressure, and the one after that does not."""
    first = await mailbox.send_mime(BIG)
    mailbox.pressure.state = FULL
    assert (await mailbox.send_mime(BIG, retry_attempt="1")).status_code == 503
    mailbox.pressure.state = PressureState()
    assert same(first, await mailbox.send_mime(BIG, retry_attempt="2"))
    assert len(mailbox.pending) == 1


async def test_the_send_of_a_draft_in_chunks_is_repeated(mailbox: Mailbox) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"ignored"

    message = {"toRecipients": to("bob@example.test")}
    draft = (await mailbox.post("me/messages", message)).json()["id"]
    fields = {"content-type": "text/plain"}
    path = f"me/messages/{draft}/send"
    first = await mailbox.http.post(path, content=body(), headers=fields)
    again = {**fields, "retry-attempt": "1"}
    assert same(first, await mailbox.http.post(path, content=body(), headers=again))
    assert len(mailbox.pending) == 1


async def test_the_memory_is_bounded(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "REPEATS_MAX", 2)
    first = {subject: await mailbox.send(subject) for subject in "abc"}
    assert same(first["c"], await mailbox.send("c", retry_attempt="1"))
    assert not same(first["a"], await mailbox.send("a", retry_attempt="1"))  # forgotten; c, a kept


async def test_the_running_requests_of_an_account_are_limited(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "REQUESTS_PER_ACCOUNT_MAX", 2)
    answers = await asyncio.gather(*(mailbox.send(str(number)) for number in range(5)))
    for answer in [one for one in answers if one.status_code != 202]:
        refused(answer, 429, "ApplicationThrottled")
    assert len(mailbox.pending) == 2
    assert (await mailbox.send("later")).status_code == 202
