"""Pickup with submissions in memory and a real SMTP server on a Unix socket."""

import asyncio
import os
import signal
import threading
from dataclasses import replace

import pytest

from relay.base import child_process
from relay.base.accounts.account import DEAD_LETTER
from relay.base.clock import rfc3339
from relay.base.message.content import LARGE_BYTES, MemoryOctets
from relay.base.message.envelope import Envelope
from relay.base.message.properties import EmailAddress
from relay.formats.dsn import ReportKind
from relay.store.journeys.events import Step
from relay.store.mailbox.errors import NoSuchItemError, StoreUnavailableError
from relay.store.spool.types import SpoolUnavailableError
from relay.submission.pickup import conversion
from tests.support import converters
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.support.pickup_fakes import DAY_S, MIME, POSTMASTER, PickupFakes, Ready, draft
from tests.support.process_tree import child_processes
from tests.support.remote_mx import DROP, EXTENSIONS, RemoteMx


@pytest.fixture
async def fakes(tmp_path):
    return PickupFakes(tmp_path)


async def test_a_submission_is_converted_submitted_and_filed(fakes):
    pending = fakes.submit()
    mx = await fakes.run_until_ended(replies={"DOT": "250 2.0.0 Ok: queued as 0abc9"})
    assert fakes.ready.filed == {pending.submission_id: "0abc9"}
    (envelope,) = mx.envelopes
    assert envelope.reverse_path == "alice@example.test"
    assert envelope.addresses == ["b@y.test", "c@y.test"]
    assert envelope.parameters["ENVID"] == pending.submission_id
    assert not {"RET", "NOTIFY"} & (set(envelope.parameters) | set(envelope.recipients[0][1]))
    assert envelope.content.endswith(b"\r\n\r\nhello\r\n")
    assert fakes.crash.passed == ["submission-converted", "submission-sent", "submission-accepted"]
    assert fakes.waiting == 0
    journey = await fakes.log.submission(pending.submission_id)
    (step,) = journey.steps
    assert (step.step, step.detail["recipients"]) == (3, 2)
    assert step.detail["draft"] == "MIME"
    assert step.detail["draft_size"] == pending.path.stat().st_size
    assert step.detail["size"] == len(envelope.content)


async def test_a_delivery_receipt_requests_notify_success_failure_and_delay(fakes):
    fakes.submit(content=draft(delivery_receipt=True))
    mx = await fakes.run_until_ended()
    assert mx.envelopes[0].recipients == [("b@y.test", {"NOTIFY": "DELAY,FAILURE,SUCCESS"})]


@pytest.mark.parametrize(
    "replies",
    [
        {"DOT": ["451 4.3.0 busy", "250 2.0.0 Ok: queued as 1"]},
        {"DOT": [DROP, "250 2.0.0 Ok: queued as 1"]},
        {"MAIL": ["421 4.3.2 down", "250 ok"]},
        {"CONNECT": ["554 5.3.2 no", "220 hi"]},
        {"EHLO": ["250 mx", "250-mx\r\n250 DSN"]},
        {"RCPT": ["250 ok", "452 4.5.3 too many", "250 ok"]},
    ],
)
async def test_a_temporary_failure_is_retried_with_the_same_key(fakes, replies):
    pending = fakes.submit()
    mx = await fakes.run_until_ended(replies=replies)
    assert set(fakes.ready.filed) == {pending.submission_id}
    assert len(fakes.ready.delays) == 1
    accepted = [one for one in mx.envelopes if one.answered == 250]
    assert [one.addresses for one in accepted] == [["b@y.test", "c@y.test"]]
    assert {one.parameters["ENVID"] for one in mx.envelopes} == {pending.submission_id}
    assert fakes.waiting == 0


@pytest.mark.parametrize("replies", [{"DOT": "554 5.6.0 not this"}, {"RCPT": "554 5.6.0 not this"}])
async def test_a_permanent_rejection_is_reported_in_the_inbox(fakes, replies):
    pending = fakes.submit()
    await fakes.run_until_ended(replies=replies)
    assert fakes.ready.failed == {pending.submission_id: b"report"}
    ((_, message, content, recipients),) = fakes.reports.asked
    assert message.envelope == Envelope("alice@example.test", envid=pending.submission_id)
    assert b"Subject: x" in content
    assert [one.path.address for one in recipients] == ["b@y.test", "c@y.test"]
    evidence = recipients[0].evidence
    assert (evidence.status, evidence.reply) == ("5.6.0", "554 5.6.0 not this")
    assert (evidence.host, evidence.remote) == ("", False)
    steps = (await fakes.log.submission(pending.submission_id)).steps
    assert [step.step for step in steps] == [3, 7]
    assert fakes.waiting == 0


@pytest.mark.parametrize("full", [(), (POSTMASTER,)])
async def test_a_report_for_a_full_mailbox_goes_to_the_postmaster_or_dead_letter(fakes, full):
    pending = fakes.submit()
    fakes.ready.full = {pending.account, *full}
    await fakes.run_until_ended(replies={"RCPT": "554 5.6.0 not this"})
    assert fakes.ready.failed == {pending.submission_id: b"report"}
    assert fakes.ready.reported_to[pending.submission_id] == (DEAD_LETTER if full else POSTMASTER)
    assert (fakes.ready.delays, fakes.waiting) == ([], 0)
    counted = fakes.metrics.registry.get_sample_value
    assert counted("relay_reports_total", {"kind": "dead-letter"}) == 1
    *_, last = (await fakes.log.submission(pending.submission_id)).steps
    assert (last.step, last.detail["to"]) == (7, "postmaster")
    assert "is full" in last.detail["reason"]


async def test_a_draft_that_cannot_be_converted_is_reported(fakes):
    fakes.submit(content=b"From: alice@example.test\r\nSubject: to nobody\r\n\r\nhello\r\n")
    mx = await fakes.run_until_ended()
    assert [one.path.address for one in fakes.reports.recipients] == ["alice@example.test"]
    assert fakes.reports.evidence.status == "5.6.3"
    assert "no recipients" in fakes.reports.evidence.reply
    assert mx.envelopes == []


@pytest.mark.parametrize(
    "content",
    [
        MIME.replace(b"alice@", b"denied@"),
        b"Sender: denied@y.test\r\n" + MIME,
        b"Resent-From: denied@y.test\r\n" + MIME,
        draft(sender=EmailAddress("denied@y.test")),
    ],
)
async def test_what_its_account_may_not_send_is_reported_and_not_sent(fakes, content):
    fakes.submit(content=content)
    mx = await fakes.run_until_ended()
    assert fakes.reports.evidence.status == "5.7.1"
    assert "found <denied@" in fakes.reports.evidence.reply
    assert (mx.envelopes, len(fakes.ready.failed)) == ([], 1)


async def test_a_malformed_recipient_of_a_draft_is_reported_on_one_line(fakes):
    fakes.submit(content=draft("b@y.test>\r\nRCPT TO:<c@y.test"))
    mx = await fakes.run_until_ended()
    assert [one.path.address for one in fakes.reports.recipients] == ["b@y.test> RCPT TO:<c@y.test"]
    assert mx.envelopes == []


@pytest.mark.parametrize(
    ("steps", "reported_to", "kind"),
    [
        ([], POSTMASTER, ReportKind.FAILED),
        ([Step.CREATED], "carol@example.test", ReportKind.FAILED),
        ([Step.CREATED, Step.CONVERTED], "carol@example.test", ReportKind.UNKNOWN),
    ],
)
async def test_the_log_says_whose_submission_without_a_record_is(fakes, steps, reported_to, kind):
    damaged = fakes.submit(account="", base_name="")
    for step in steps:
        fakes.record(replace(damaged, account="carol@example.test"), step, 1)
    mx = await fakes.run_until_ended()
    assert fakes.ready.reported_to == {damaged.submission_id: reported_to}
    assert fakes.ready.to_corrupt == [damaged.submission_id]
    ((found, about, _, recipients),) = fakes.reports.asked
    assert (found, about.envelope.reverse_path) == (kind, reported_to)
    assert [one.path.address for one in recipients] == ["b@y.test", "c@y.test"]
    assert mx.envelopes == []


async def test_the_report_of_a_large_draft_in_corrupt_names_its_recipients(fakes):
    fakes.submit(content=draft(subject="raise", body="x" * LARGE_BYTES))
    await fakes.run_until_ended(converter=converters.convert)
    ((_, _, content, recipients),) = fakes.reports.asked
    assert [one.path.address for one in recipients] == ["b@y.test"]
    assert b"Subject: raise" in content.header
    assert b"X-Relay" not in content.header


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (b"raise", "it failed with an internal error"),
        (b"crash", "it ended with signal 11"),
        (b"hang", "it did not end within 5 seconds"),
    ],
)
async def test_a_conversion_that_crashes_or_hangs_does_not_stop_other_submissions(
    fakes, monkeypatch, poison, reason
):
    monkeypatch.setattr(child_process, "_END_S", 60.0)
    monkeypatch.setattr(conversion, "_LIMIT_S", 0.2)
    monkeypatch.setattr(conversion, "_LIMIT_S_PER_MIB", 0)
    monkeypatch.setattr(conversion, "_ALONE_LIMIT_S", 0.5)
    monkeypatch.setattr(conversion, "_ALONE_LIMIT_S_PER_MIB", 0)
    bad = fakes.submit(1, content=b"Subject: %s\r\nTo: b@y.test\r\n\r\n" % poison)
    good = fakes.submit(2)
    await fakes.run_until_ended(2, max_concurrent=1, converter=converters.convert)
    assert set(fakes.ready.filed) == {good.submission_id}
    assert fakes.ready.to_corrupt == [bad.submission_id]
    assert fakes.ready.delays == []
    assert fakes.reports.evidence.status == "5.6.0"
    assert reason in fakes.reports.evidence.reply


async def test_mime_and_html_are_parsed_only_in_child_processes(fakes):
    """A parser that crashes or hangs must not stop the relay."""
    converters.calls_here.clear()
    fakes.submit(1)
    fakes.submit(2, content=draft(body_type="html"))
    async with fakes.with_server(converter=converters.only_in_a_child):
        await fakes.ready.ended(2)
        assert converters.calls_here == []
        fakes.submit(3, content=draft())
        await fakes.ready.ended(3)
    assert len(converters.calls_here) == 1
    assert len(fakes.ready.filed) == 3


async def test_conversions_that_hang_do_not_delay_other_accounts(fakes, monkeypatch):
    """Twenty of one account do not occupy all workers, processes or threads."""
    threads = set(threading.enumerate())
    for number in range(20):
        fakes.submit(number, content=b"Subject: hang\r\nTo: b@y.test\r\n\r\n")
    async with fakes.with_server(max_concurrent=4, converter=converters.convert):
        await until(_children)
        others = [fakes.submit(21 + one, account="bob@example.test") for one in range(5)]
        await fakes.ready.ended(5)
        assert set(fakes.ready.filed) == {one.submission_id for one in others}
        assert fakes.ready.failed == {}
        assert len(_children()) <= 3  # two shared processes, and one for long conversions
        assert set(threading.enumerate()) <= threads
        monkeypatch.setattr(conversion, "_ALONE_LIMIT_S", 0.01)
        for child in _children():
            os.kill(child, signal.SIGKILL)
    await until(lambda: not _children())


HANG = b"Subject: hang\r\nTo: b@y.test\r\n\r\n"


@pytest.fixture
def converting():
    return conversion.ConversionPool(converters.convert, hostname="relay.test", clock=ManualClock())


@pytest.fixture
def converted(converting, tmp_path):
    """Begin the conversion of a submission."""
    ready = Ready(tmp_path)

    def begin(number, **fields):
        pending = ready.submit(number, **fields)
        content = MemoryOctets(pending.path.read_bytes())
        return asyncio.create_task(converting.convert(pending, content))

    return begin


async def test_accounts_take_turns_with_long_conversions(converting, converted, monkeypatch):
    for name, value in {"_LIMIT_S": 0.1, "_ALONE_LIMIT_S": 0.1, "_REAL_PER_CPU_S": 4}.items():
        monkeypatch.setattr(conversion, name, value)
    assert await converting._alone.take("carol@example.test")
    ended = []
    hers = [converted(number, content=HANG) for number in range(3)]
    await until(lambda: converting._alone._waiting == 3)
    his = converted(6, content=HANG, account="bob@example.test")
    await until(lambda: converting._alone._waiting == 4)
    for task in (*hers, his):
        task.add_done_callback(lambda task: ended.append(task is his))
    converting._alone.give_back("carol@example.test")
    failed = await asyncio.gather(*hers, his, return_exceptions=True)
    assert {type(error) for error in failed} == {conversion.ConversionUnfinishedError}
    assert ended == [False, True, False, False]
    converting.close()


async def test_an_account_uses_only_one_of_the_shared_processes(converting, converted, monkeypatch):
    monkeypatch.setattr(conversion, "_LIMIT_S", 30.0)
    kept = [converted(number, content=HANG) for number in range(3)]
    async with asyncio.timeout(120):
        made = await converted(4, account="bob@example.test")
    assert made.subject == "x"
    assert not any(one.done() for one in kept)
    for one in kept:
        one.cancel()
    await asyncio.gather(*kept, return_exceptions=True)
    converting.close()
    assert _children() == set()


_EARLIER = set()


@pytest.fixture(autouse=True)
def earlier_children():
    """Other files of tests that ran in this process may have left some."""
    _EARLIER.clear()
    _EARLIER.update(child_processes())


def _children():
    """The child processes of this test that have not ended."""
    return child_processes() - _EARLIER


@pytest.mark.parametrize(
    "error_once", [StoreUnavailableError("disk"), OSError("disk"), ZeroDivisionError("a bug")]
)
async def test_an_error_of_the_store_retries_the_submission(fakes, error_once):
    pending = fakes.submit()
    fakes.ready.error_once = error_once
    await fakes.run_until_ended()
    assert set(fakes.ready.filed) == {pending.submission_id}
    assert len(fakes.ready.delays) == 1


async def test_an_error_of_the_spool_with_the_copy_of_a_report_retries_the_submission(fakes):
    pending = fakes.submit()
    fakes.reports.error_once = SpoolUnavailableError("disk")
    await fakes.run_until_ended(replies={"DOT": "554 5.7.1 no"})
    assert set(fakes.ready.failed) == {pending.submission_id}
    assert (len(fakes.ready.delays), len(fakes.reports.asked)) == (1, 1)


async def test_step_3_is_recorded_as_soon_as_the_log_has_room(fakes):
    log = fakes.folder / "log" / f"{rfc3339(fakes.clock.time_us())[:10]}-pickup"
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    pending = fakes.submit()
    async with fakes.with_server(replies={"DOT": ["451 4.3.0 busy", "250 2.0.0 Ok: queued as 1"]}):
        await until(lambda: len(fakes.ready.delays) >= 2)
        assert fakes.ready.filed == {}
        log.unlink()
        fakes.log.close()
        await fakes.ready.ended()
    assert log.read_bytes().count(b'"step":3') == 1
    journey = await fakes.log.submission(pending.submission_id)
    assert [step.step for step in journey.steps] == [3]


async def test_a_submission_that_no_longer_exists_has_ended(fakes):
    fakes.submit(1)
    fakes.ready.error_once = NoSuchItemError("filed already")
    fakes.submit(2)
    mx = await fakes.run_until_ended(max_concurrent=1)
    assert (len(mx.envelopes), fakes.ready.delays, fakes.waiting) == (1, [], 0)


async def test_it_gives_up_after_a_day_with_a_bounce(fakes):
    fakes.submit(age_s=DAY_S + 60)
    mx = await fakes.run_until_ended(replies={"DOT": "451 4.3.0 busy"})
    assert len(mx.envelopes) == 1
    assert fakes.reports.evidence.status == "5.4.7"
    assert fakes.reports.asked[0][0].action == "failed"
    assert "451 4.3.0 busy" in fakes.reports.evidence.reply


async def test_giving_up_after_an_uncertain_attempt_reports_an_unknown_outcome(fakes):
    """An attempt that ended after the final dot may have been accepted."""
    fakes.submit()
    fakes.clock.advance(-60)
    replies = {"DOT": [DROP, "451 4.3.0 busy"]}
    async with fakes.with_server(replies=replies):
        await until(lambda: fakes.ready.delays)
        fakes.clock.advance(DAY_S + 120)
        await fakes.ready.ended()
    assert fakes.reports.asked[0][0] is ReportKind.UNKNOWN
    assert "unknown whether the message was sent" in fakes.reports.evidence.reply


async def test_while_the_server_accepts_nothing_only_one_submission_probes_it(fakes):
    """Without the circuit breaker, forty submissions would all be retried."""
    for number in range(40):
        fakes.submit(number)
    replies = {"MAIL": ["451 4.3.0 no"] * 9 + ["250 ok"]}
    async with fakes.with_server(max_concurrent=4, replies=replies):
        await until(lambda: len(fakes.ready.delays) >= 4)
        loop = asyncio.get_running_loop()
        soon = loop.time() + 0.5
        while loop.time() < soon:
            await asyncio.sleep(0.01)
        assert len(fakes.ready.delays) <= 8
        await fakes.ready.ended(40)
    assert len(fakes.ready.filed) == 40
    assert len(fakes.ready.delays) == 6  # at once again after 3 replies on a kept connection


async def test_what_a_rule_defers_delays_no_other_submission(fakes):
    """With the circuit breaker, only one of them at a time would be tried."""
    for number in range(20):
        fakes.submit(number)
    async with fakes.with_server(max_concurrent=4, replies={"DOT": "451 4.7.1 a rule says later"}):
        await until(lambda: len(fakes.ready.delays) >= 40)


async def test_a_submission_older_than_its_key_is_not_sent(fakes):
    fakes.submit(age_s=8 * DAY_S + 60)
    mx = await fakes.run_until_ended()
    assert mx.sessions == 0
    assert "may have been sent and is not sent again" in fakes.reports.evidence.reply


async def test_drain_finishes_submissions_in_progress(fakes):
    fakes.submit()
    gate = asyncio.Event()
    async with fakes.with_server(gates={"DOT": gate}) as mx:
        await mx.reached("DOT")
        asyncio.get_running_loop().call_later(0.05, gate.set)
    assert len(fakes.ready.filed) == 1  # drain() waited
    assert mx.commands[-1] == "QUIT"


async def test_a_connection_closed_while_idle_is_replaced_without_a_retry(fakes):
    async with fakes.with_server(max_concurrent=1, replies={"MAIL": ["250 ok", DROP, "250 ok"]}):
        fakes.submit(1)
        await fakes.ready.ended(1)
        fakes.submit(2)
        await fakes.ready.ended(2)
    assert fakes.ready.delays == []


async def test_a_server_without_dsn_is_not_used(fakes):
    fakes.submit(age_s=2 * DAY_S)
    mx = await fakes.run_until_ended(extensions=[word for word in EXTENSIONS if word != "DSN"])
    assert mx.envelopes == []
    assert len(fakes.ready.failed) == 1


async def test_limit_concurrency_reduces_the_submissions_in_progress(fakes):
    gate = asyncio.Event()
    server = RemoteMx(path=fakes.path, gates={"DOT": gate})
    async with server as mx, fakes.running(max_concurrent=4) as pickup:
        pickup.limit_concurrency(0)  # means 1: one must probe whether there is room again
        for number in range(8):
            fakes.submit(number)
        await mx.reached("DOT")
        assert len(mx.envelopes) == 1
        gate.set()
        await fakes.ready.ended(8)
        assert mx.most_open == 1
        gate.clear()
        pickup.limit_concurrency(4)
        for number in range(8, 16):
            fakes.submit(number)
        await until(lambda: mx.most_open >= 4)
        gate.set()
        await fakes.ready.ended(16)
        assert mx.most_open == 4


async def test_a_submission_of_uncertain_age_is_submitted(fakes):
    pending = fakes.submit(age_s=400 * DAY_S)
    fakes.clock.doubtful_us = int(400 * DAY_S * 1e6)
    await fakes.run_until_ended()
    assert set(fakes.ready.filed) == {pending.submission_id}
    assert not fakes.ready.failed


@pytest.mark.parametrize(
    "earlier_s", [-60, 400 * DAY_S], ids=["before", "by a clock that was ahead"]
)
async def test_an_attempt_recorded_by_an_earlier_process_ends_as_unknown(fakes, earlier_s):
    pending = fakes.submit(age_s=2 * DAY_S)
    fakes.record(pending, Step.CONVERTED, fakes.clock.time_us() + int(earlier_s * 1e6))
    await fakes.run_until_ended(replies={"DOT": "451 4.3.0 busy"})
    assert fakes.reports.evidence.status == "4.4.7"
