"""Mail with files by Microsoft Graph: once, complete, and nothing is left in Drafts."""

import asyncio
from base64 import b64encode
from contextlib import nullcontext
from itertools import count

import pytest

from relay.base.message.outcome import Deferred, Failed, Relayed
from relay.base.message.tls_policy import TlsPolicy
from relay.base.message.web_url import UrlError
from relay.delivery.graph import filling
from relay.delivery.graph.upload import upload_url
from relay.delivery.smtp.connect import Target
from relay.store.spool.types import DueQuery
from relay.transport.routing.routes import GraphOptions
from tests.support.fake_graph import SECRET, FakeGraph, error
from tests.support.journeys import states
from tests.support.manual_clock import ManualClock
from tests.support.operator import command
from tests.support.tables import each_row
from tests.support.tls import authority, certificate
from tests.unit.delivery import test_graph

__all__ = ["authority", "certificate"]
FILES = [("a.pdf", b"a" * 700), ("b.txt", b"b" * 90), ("c.pdf", bytes(range(250)) * 2)]
OWN_ID = "<scan.1@a.test>"


def message(files=FILES, more=b"") -> bytes:
    """A scan with these files."""
    parts = "".join(
        f"--x\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-Disposition: attachment; filename={name}\r\n\r\n{b64encode(octets).decode()}\r\n"
        for name, octets in files
    )
    head = f"From: o'hara@a.test\r\nTo: r0@x.test\r\nMessage-ID: {OWN_ID}\r\nMIME-Version: 1.0\r\n"
    text = f"{head}Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nscan\r\n"
    return more + f"{text}{parts}--x--\r\n".encode()


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setattr(filling, "_POSTED_OCTETS", 300)
    monkeypatch.setattr(filling, "_BLOCK_OCTETS", 200)
    monkeypatch.setattr(filling, "_WAIT_S", 0.01)


@pytest.fixture
async def graph():
    async with FakeGraph(lambda: 0) as running:
        running.page = 2
        yield running


def scan(clock=None, **fields) -> test_graph.Spooled:
    claim = test_graph.Spooled(clock or ManualClock(), 1, message(**fields))
    claim.size = 10_000
    return claim


def arrived(graph, claim, message_id=OWN_ID) -> None:
    """One message was sent, with all files; there is no draft."""
    [item] = graph.sent
    assert (item.files, item.message_id, item.recipients) == (FILES, message_id, ["r0@x.test"])
    assert not graph.in_folder("drafts")
    assert not claim.noted.uploads


def nth(end: str, number: int, fault, method="POST"):
    """A fault of the request with this method and end of its path that has this number, from 1."""
    numbers = count(1)
    return lambda verb, path: (
        fault if verb == method and end in f"{path}#" and next(numbers) == number else ""
    )


BUSY = error(429, "ApplicationThrottled", retry_after="1")
AWAY, GONE = error(503, ""), error(404, "ErrorItemNotFound")


@each_row(
    "fault, drafts",
    [
        (nth("/attachments#", 1, BUSY), 1),
        (nth("createUpload", 2, AWAY), 1),
        (nth("/up/", 2, AWAY, "PUT"), 1),
        (nth("/up/", 2, "lost before", "PUT"), 1),
        (nth("/up/", 2, "lost after", "PUT"), 1),
        (nth("/up/", 4, "lost after", "PUT"), 2),  # the last of a file
        (nth("/up/", 2, GONE, "PUT"), 2),  # the session has ended
        (nth("/up/", 1, (200, {"nextExpectedRanges": ["600"]}, {}), "PUT"), 2),
        (nth("/up/", 1, (200, {"nextExpectedRanges": ["0-"]}, {}), "PUT"), 2),
        (nth("/up/", 4, (201, {}, {}), "PUT"), 2),  # that was not so
        (nth("/attachments#", 1, "lost after"), 2),
        (nth("/attachments#", 1, error(500, "")), 2),
        (nth("/attachments#", 1, GONE), 2),
        (nth("/attachments#", 1, (201, {}, {})), 2),
        (nth("/attachments#", 1, (200, {"value": []}, {}), "GET"), 2),
        (nth("/messages/", 1, error(400, "ErrorX"), "PATCH"), 1),
        (nth("/send", 1, BUSY), 1),
    ],
)
async def test_each_file_is_there_once_before_it_is_sent(fault, drafts) -> None:
    async with FakeGraph(lambda: 0) as graph:
        claim, graph.page = scan(), 2
        (outcome,), asked = await test_graph.attempt(graph, claim, fault)
        if isinstance(outcome, Deferred):  # by /send
            assert not claim.noted.uploads
            again, more = await test_graph.attempt(graph, claim)
            assert (type(again[0]), len(more), more[-1]) == (Relayed, 2, "POST send")
        assert isinstance(outcome, Relayed | Deferred)
        assert (outcome.evidence.encoded[:9], asked.count("POST messages")) == ("converted", drafts)
        renamed = graph.sent[0].message_id == OWN_ID
        arrived(graph, claim, OWN_ID if renamed else "<0@relay.test>")
        assert renamed == ("PATCH" not in str(fault.__closure__[2].cell_contents))


@each_row(
    "fault, expected, drafts",
    [
        (nth("/attachments#", 1, error(413, "")), (Failed, "5.3.4"), 0),
        (nth("/up/", 1, error(400, "ErrorMessageSizeExceeded"), "PUT"), (Failed, "5.3.4"), 0),
        (
            nth("/up/", 1, (307, {}, {"location": "http://127.0.0.1/"}), "PUT"),
            (Deferred, "4.7.5"),
            0,
        ),
        (nth("/attachments#", 1, error(429, "", retry_after="61")), (Deferred, "4.3.2"), 1),
        (lambda _, path: GONE if path.startswith("/up/") else "", (Deferred, "4.4.2"), 0),
        (nth("/messages#", 1, "lost after"), (Deferred, "4.4.2"), 1),
    ],
)
async def test_a_draft_that_is_not_sent_is_deleted_then_or_by_the_next_attempt(
    fault, expected, drafts
) -> None:
    async with FakeGraph(lambda: 0) as graph:
        claim, graph.page = scan(), 2
        (outcome,), asked = await test_graph.attempt(graph, claim, fault)
        assert (type(outcome), outcome.evidence.status) == expected, outcome
        assert (outcome.evidence.pause_s == 61) == ("4.3.2" in expected)
        assert (len(graph.in_folder("drafts")), len(claim.noted.uploads)) == (drafts, drafts)
        assert SECRET[-30:] not in outcome.evidence.reply
        assert asked.count("POST messages") <= 3
        assert not graph.sent
        if claim.live:
            own_id = OWN_ID if expected[1] != "4.4.2" or not drafts else "<1@relay.test>"
            (outcome,), _ = await test_graph.attempt(graph, claim)
            assert isinstance(outcome, Relayed)
            arrived(graph, claim, own_id)


async def test_a_draft_that_a_person_has_sent_stays(graph) -> None:
    claim = scan()
    await test_graph.attempt(
        graph, claim, nth("/attachments#", 1, error(429, "", retry_after="61"))
    )
    [half] = graph.in_folder("drafts")
    half.folder, half.is_draft = "sentitems", False
    (outcome,), _ = await test_graph.attempt(graph, claim)
    assert isinstance(outcome, Relayed)
    arrived(graph, claim)
    assert half in graph.in_folder("sentitems")


async def test_a_file_of_another_name_is_named(graph) -> None:
    listed = (200, {"value": [{"name": "a_b.pdf"}] * 3}, {})
    (outcome,), _ = await test_graph.attempt(
        graph, scan(), lambda verb, path: listed if verb == "GET" and "attach" in path else ""
    )
    assert outcome.evidence.reply.endswith('has 3 of 3 files, such as "a_b.pdf"')


async def test_no_evidence_repeats_the_upload_url(graph) -> None:
    for words in (
        SECRET,
        f"/up/4?{SECRET}",
        SECRET.partition("=")[2],
        f"{graph.host}/up/4?{SECRET}",
    ):
        told = error(413, "ErrorX")
        told[1]["error"]["message"] = f"no {words}"
        (outcome,), _ = await test_graph.attempt(graph, scan(), nth("/up/", 1, told, "PUT"))
        assert outcome.evidence.reply.startswith("HTTP 413 ErrorX: no ")
        assert SECRET[10:26] not in outcome.evidence.reply


@each_row(
    "url, expected",
    [
        ("https://outlook.office.com/x?authtoken=a", ""),
        ("https://graph.test/x", ""),
        ("https://a.up.example/x", ""),
        ("https://outlook.office.com.evil.test/x", "evil.test, which is not in upload_hosts"),
        ("https://eviloffice.com/x", "eviloffice.com"),
        ("https://x.graph.test/x", "x.graph.test"),
        ("http://outlook.office.com/x", "without TLS"),
        ("http://graph.test/x", "without TLS"),
        ("https://u:p@outlook.office.com/x", "user name"),
        ("ftp://outlook.office.com/x", "scheme"),
    ],
)
def test_whose_upload_url_is_used(url, expected) -> None:
    options = GraphOptions(True, 1, upload_hosts=("up.example",))
    target = Target("graph.test", "192.0.2.1", 443, login=test_graph.LOGIN, graph=options)
    with pytest.raises(UrlError, match=expected) if expected else nullcontext():
        assert upload_url(url, target).text == url


async def test_files_go_to_a_host_of_a_verified_name_alone(graph, authority, certificate) -> None:
    context = authority.issue("DNS:localhost").server_context()
    options = GraphOptions(True, 2000, upload_hosts=("localhost", "127.0.0.1"))
    async with FakeGraph(lambda: 0, context) as other:
        other.uploads = graph.uploads
        for host, trusted, reply in (
            ("localhost", authority, ""),
            ("127.0.0.1", authority, "the certificate is for localhost, not 127.0.0.1"),
            ("localhost", certificate, "correct the certificate"),
        ):
            graph.url, claim = f"https://{host}:{other.port}", scan()
            policy = TlsPolicy("none", ca=trusted.certificate)
            session = await test_graph.opened(graph, options=options, tls=policy)
            [outcome] = await claim.attempt(session)
            session.close()
            assert reply in outcome.evidence.reply
            assert (type(outcome), outcome.evidence.status) == (
                (Deferred, "4.7.5") if reply else (Relayed, "2.0.0")
            )
            assert not graph.in_folder("drafts")
        assert {method for method, _ in other.asked} == {"PUT"}


async def test_a_mailbox_fills_one_draft_at_a_time_and_small_mail_passes(delivery, graph) -> None:
    test_graph.routed(delivery, graph, mime_max=1000)
    graph.gate.clear()
    await delivery.start()
    large = [await delivery.send("r0@x.test", contents=(message(),)) for _ in range(3)]
    await delivery.done(await delivery.send("small@x.test"))
    assert len(graph.in_folder("drafts")) == 1
    withdrawn = delivery.scheduler.withdraw([(large[2], 1)])
    assert withdrawn == {(large[2], 1)}, "it waits without a connection"
    graph.gate.set()
    for one in large[:2]:
        journey = await delivery.done(one)
        assert set(states(journey).values()) == {"relayed"}
        assert [len(to.attempts) for to in journey.recipients] == [1]
    assert [item.files for item in graph.sent] == [[], FILES, FILES]
    assert not graph.in_folder("drafts")


async def test_a_stop_while_files_go_is_no_doubt(delivery, graph) -> None:
    test_graph.routed(delivery, graph, mime_max=1000)
    graph.gate.clear()
    await delivery.start()
    queue_id = await delivery.send("r0@x.test", contents=(message(),))
    while not graph.uploads:
        await asyncio.sleep(0.01)
    await delivery.scheduler.drain(0)
    [claim] = (await delivery.spool.claim_due(1 << 60, 9, DueQuery())).claims
    journey = await delivery.spool.journey(queue_id)
    assert [to.attempts for to in journey.recipients] == [()]
    assert [bool(one.draft) for one in claim.extra.uploads] == [True]
    assert not claim.extra.requests
    await delivery.spool.release([claim])


async def test_no_send_follows_a_command_that_comes_while_files_go(delivery, graph) -> None:
    test_graph.routed(delivery, graph, mime_max=1000)
    graph.gate.clear()
    await delivery.start()
    delivery.spool.queue_admin.delivery = delivery.scheduler
    queue_id = await delivery.send("r0@x.test", contents=(message(),))
    while not graph.uploads:
        await asyncio.sleep(0.01)
    answer = await delivery.spool.queue_admin.execute(command("cancel"))
    assert [one["result"] for one in answer.entries] == ["ordered"]
    graph.gate.set()
    assert (await delivery.done(queue_id)).state == "cancelled"
    while graph.in_folder("drafts"):
        await asyncio.sleep(0.01)
    assert not [path for _, path in graph.asked if path.endswith("/send")]


async def test_a_kill_at_any_moment_leaves_no_half_and_no_second_message() -> None:
    for moment in count():
        clock = ManualClock()
        async with FakeGraph(clock.queue_us) as graph:
            claim = scan(clock)
            is_killed = await test_graph.killed(graph, claim, moment)
            assert claim.is_sending <= claim.noted.in_doubt
            while claim.live:
                clock.now_us += 150 * test_graph.SECONDS_US
                (outcome,), _ = await test_graph.attempt(graph, claim)
                assert claim.noted.in_doubt or not isinstance(outcome, Deferred)
            lost = [one for one in claim.noted.uploads if not one.draft]
            assert [item.files for item in graph.sent] == [FILES], moment
            assert not graph.in_folder("drafts"), moment
            assert len(lost) == len(claim.noted.uploads) <= 1
        if not is_killed:
            break
    assert moment > 30
