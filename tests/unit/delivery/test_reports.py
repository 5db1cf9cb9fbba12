"""Reports of success and of delay: one for a message, a kind and a moment."""

import asyncio

import pytest
from msgspec.structs import replace

from relay.delivery import queue_scanner
from relay.store.spool.types import NO_EXTRA, EntryExtra, SpoolUnavailableError
from tests.support.journeys import states
from tests.support.remote_mx import EXTENSIONS, RemoteMx
from tests.support.spools import message_of
from tests.unit.delivery import conftest
from tests.unit.delivery.conftest import Plan, RunningDelivery

HOUR_US = 3600 * 1_000_000
TWO_AT_ONCE = ["250 ok"] * 2 + ["452 4.5.3 too many"] * 3  # of five; then all others
WITHOUT_DSN = tuple(one for one in EXTENSIONS if one != "DSN")


@pytest.mark.parametrize("notify", ["", "SUCCESS", "NEVER", "FAILURE,DELAY"])
async def test_a_local_delivery_is_reported_if_that_was_asked_for(delivery, notify: str) -> None:
    delivery.table.mailboxes |= {"ann@here.test", "bob@here.test"}
    await delivery.start()
    await delivery.done(await delivery.send("ann@here.test", "bob@here.test", notify=notify))
    expected = [("delivered", ["ann@here.test", "bob@here.test"])] if notify == "SUCCESS" else []
    assert delivery.reporter.reported == expected


@pytest.mark.parametrize("offers_dsn", [True, False])
async def test_a_relay_is_reported_if_the_next_host_does_not(delivery, offers_dsn: bool) -> None:
    extensions = EXTENSIONS if offers_dsn else WITHOUT_DSN
    async with RemoteMx(extensions=extensions) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        await delivery.done(await delivery.send("x@a.test", notify="SUCCESS"))
        await delivery.done(await delivery.send("x@a.test"))
    assert delivery.reporter.reported == ([] if offers_dsn else [("relayed", ["x@a.test"])])


async def test_one_report_is_about_all_transactions_of_an_attempt(delivery) -> None:
    replies = [*TWO_AT_ONCE, "250 ok", "550 5.1.1 no", "250 ok"]
    async with RemoteMx(replies={"RCPT": replies}, extensions=WITHOUT_DSN) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        people = [f"{number}@a.test" for number in range(5)]
        queue_id = await delivery.send(*people, notify="SUCCESS,FAILURE")
        assert list(states(await delivery.done(queue_id)).values()).count("relayed") == 4
        assert len(mx.envelopes) == 2
    assert delivery.reporter.reported == [("relayed", [*people[:3], people[4]])]
    assert delivery.reporter.failures_reported == [(people[3], "5.1.1")]


async def test_a_report_survives_the_end_of_the_process_between_two_transactions(
    monkeypatch, tmp_path
) -> None:
    delivery = RunningDelivery(tmp_path)
    await delivery.open()
    record, stuck = delivery.spool.record, asyncio.Event()

    async def only_parts(claim_result, **more):
        if claim_result.goes_on:
            return await record(claim_result, **more)
        stuck.set()
        raise SpoolUnavailableError("the disk is gone")

    monkeypatch.setattr(delivery.spool, "record", only_parts)
    replies = [*TWO_AT_ONCE, *["450 4.2.0 later"] * 3]
    async with RemoteMx(replies={"RCPT": replies}, extensions=WITHOUT_DSN) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        people = [f"{number}@a.test" for number in range(5)]
        queue_id = await delivery.send(*people, notify="SUCCESS")
        await stuck.wait()
        await delivery.stop(grace_s=0.1)
    assert delivery.reporter.reported == [("relayed", people[:2])]  # was written, not committed

    again = RunningDelivery(tmp_path)
    async with RemoteMx(extensions=WITHOUT_DSN) as mx:
        again.table.at("a.test", mx)
        await again.start()
        again.scheduler.due_now()
        await again.done(queue_id)
        assert [one.addresses for one in mx.envelopes] == [people[2:]]
    assert again.reporter.reported == [("relayed", people)]
    await again.stop()


@pytest.mark.parametrize("kept", ["held", "captured"])
async def test_a_report_that_nobody_attempts_ends_at_its_time(
    delivery, monkeypatch, kept: str
) -> None:
    monkeypatch.setattr(queue_scanner, "RESCAN_US", 1 << 60)  # or that would find it
    monkeypatch.setattr(conftest, "KEEP_US", 300_000)
    now_us = delivery.clock.queue_us()
    extra = EntryExtra(reason="route alice is held") if kept == "held" else NO_EXTRA
    report = message_of(
        [("mx:home.test" if kept == "held" else "capture", ["alice@home.test"])],
        queue_id=delivery.ids.new(), now_us=now_us, reverse_path="", expires_us=now_us + 300_000,
    )  # fmt: skip
    report = replace(report, entries=tuple(replace(one, extra=extra) for one in report.entries))
    plans = [Plan((report,))]
    monkeypatch.setattr(
        delivery.reporter, "reports", lambda *_, **__: plans.pop() if plans else Plan()
    )
    async with RemoteMx(replies={"RCPT": "550 5.1.1 no"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        await delivery.done(await delivery.send("x@a.test"))
        assert states(await delivery.done(report.facts.id)) == {"alice@home.test": "expired"}


async def test_late_mail_for_several_next_hops_gets_one_delay_report(delivery) -> None:
    delivery.retry_s = (3600.0,)
    domains = [f"{number}.test" for number in range(5)]
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        for domain in domains:
            delivery.table.at(domain, mx)
        await delivery.start()
        people = [f"x@{domain}" for domain in domains]
        warn_us = delivery.clock.queue_us() + 400_000
        queue_id = await delivery.send(*people, warn_us=warn_us, expire_s=9999)

        async def warnings() -> list[int | None]:
            connection = delivery.spool._connection
            rows = connection.execute("SELECT warn_us, claimed, due_us FROM entry").get
            return [row[0] for row in rows if row[1] or row[2] < warn_us + HOUR_US // 2]

        async with asyncio.timeout(10):
            while not delivery.reporter.reported or await warnings():
                await delivery.changed.get()
    ((kind, reported),) = delivery.reporter.reported
    assert (kind, sorted(reported)) == ("delayed", people)
    steps = (await delivery.spool.journey(queue_id)).steps
    assert sum(step.step == 7 for step in steps) == 1


async def test_no_delay_is_reported_that_nobody_wants_to_hear_of(delivery) -> None:
    delivery.retry_s = (3600.0,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        for notify in ("NEVER", "FAILURE", "SUCCESS"):
            warn_us = delivery.clock.queue_us()
            await delivery.send("x@a.test", notify=notify, warn_us=warn_us, expire_s=9999)
            await delivery.changed.get()
    assert delivery.reporter.reported == []
