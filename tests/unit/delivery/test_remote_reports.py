"""Reports that come in: read off the event loop with their delivery, and delivered in any case."""

import threading

import pytest

from relay.base.files import FileOctets
from relay.base.message.content import LARGE_BYTES, LargeContent
from relay.base.message.envelope import Source
from relay.formats import read_report
from tests.support.journeys import states

ALICE = "alice@example.test"
BLOCK = b"\r\nFinal-Recipient: rfc822; x@a.test\r\nAction: failed\r\nStatus: 5.1.1\r\n"


def report(blocks: int = 1, more: bytes = b"") -> bytes:
    return (
        b'Content-Type: multipart/report; boundary="b"\r\n\r\n--b\r\n\r\nSorry.\r\n--b\r\n'
        b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.a.test\r\n"
        + BLOCK
        * blocks
        + b"\r\n--b\r\nContent-Type: text/rfc822-headers\r\n\r\n"
        b"Message-ID: <m@x>\r\n" + more + b"--b--\r\n"
    )


@pytest.fixture
async def original(delivery) -> str:
    """A message of alice's to x@a.test."""
    delivery.table.mailboxes |= {ALICE, "bob@example.test", "x@a.test"}
    await delivery.start()
    queue_id = await delivery.send("x@a.test", message_id="<m@x>")
    await delivery.done(queue_id)
    return queue_id


async def receive(delivery, content, to: str = ALICE, **changes) -> dict[str, str]:
    """Deliver a message from the null sender; return the states of its recipients."""
    facts = {"reverse_path": "", "trusted": False, "client": "mx.a.test [192.0.2.7]"} | changes
    return states(await delivery.done(await delivery.send(to, contents=(content,), **facts)))


async def claims(delivery, queue_id: str) -> list[tuple[str, str]]:
    journey = await delivery.spool.journey(queue_id)
    details = [one.detail for one in journey.steps if one.step == 7]
    return [(one["kind"], one["source"]["client"]) for one in details]


@pytest.fixture
def read_in(monkeypatch) -> list[threading.Thread]:
    """The threads in which a report was looked for."""
    threads: list[threading.Thread] = []
    read = read_report.read_remote_report

    def noted(content):
        threads.append(threading.current_thread())
        return read(content)

    monkeypatch.setattr(read_report, "read_remote_report", noted)
    return threads


async def test_a_report_to_the_reverse_path_is_joined_off_the_event_loop(
    delivery, original, read_in
) -> None:
    assert await receive(delivery, report()) == {ALICE: "delivered"}
    assert await claims(delivery, original) == [("failure", "192.0.2.7")]
    assert len(read_in) == 1
    assert threading.main_thread() not in read_in


@pytest.mark.parametrize(
    "changes",
    [{"reverse_path": "mx@a.test"}, {"source": Source.REPORT, "trusted": True}],
    ids=["a-reverse-path", "of-relay"],
)
async def test_no_other_mail_is_read(delivery, original, read_in, changes) -> None:
    assert await receive(delivery, report(), **changes) == {ALICE: "delivered"}
    assert await claims(delivery, original) == []
    assert read_in == []


@pytest.mark.parametrize(
    "content",
    [
        report(100_000)[:LARGE_BYTES],
        report().replace(b"Content-Type", b"\xff\xfeContent-Type\x80"),
        report().replace(b"failed", b"\xff\x00\x80"),
        report()[:150],
        report().replace(b"--b\r\n", b"--b--\r\n"),
    ],
    ids=["blocks", "no-charset", "no-action", "cut", "closed"],
)
async def test_a_damaged_report_is_delivered_as_ordinary_mail(delivery, original, content) -> None:
    assert await receive(delivery, content) == {ALICE: "delivered"}
    assert {kind for kind, _ in await claims(delivery, original)} <= {"failure"}


async def test_a_report_without_the_original_is_joined_by_what_it_answers(delivery, original):
    bare = report().replace(b"Message-ID: <m@x>\r\n", b"")
    await receive(delivery, bare)
    assert await claims(delivery, original) == []
    await receive(delivery, b"In-Reply-To: <m@x>\r\n" + bare, to="bob@example.test")
    assert await claims(delivery, original) == []
    await receive(delivery, b"In-Reply-To: <m@x>\r\n" + bare)
    assert await claims(delivery, original) == [("failure", "192.0.2.7")]


async def test_a_report_of_100_mb_is_joined_and_delivered(delivery, original, tmp_path) -> None:
    header, _, start = report(more=b"x" * 60 + b"\r\n").partition(b"\r\n\r\n")
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.write(b"\r\n" + start)
        file.seek(100 * 1024 * 1024)
        file.write(b"\r\n--b--\r\n")
    octets = FileOctets(body, 0, body.stat().st_size)
    content = LargeContent(header + b"\r\n", (octets,), eight_bit=False)
    assert await receive(delivery, content) == {ALICE: "delivered"}
    assert await claims(delivery, original) == [("failure", "192.0.2.7")]
