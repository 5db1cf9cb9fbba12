"""Reports of success: one for a message, a kind and a moment."""

import pytest

from tests.support.journeys import states
from tests.support.remote_mx import EXTENSIONS

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
    async with delivery.host(extensions=extensions):
        await delivery.done(await delivery.send("x@a.test", notify="SUCCESS"))
        await delivery.done(await delivery.send("x@a.test"))
    assert delivery.reporter.reported == ([] if offers_dsn else [("relayed", ["x@a.test"])])


async def test_one_report_is_about_all_transactions_of_an_attempt(delivery) -> None:
    replies = [*TWO_AT_ONCE, "250 ok", "550 5.1.1 no", "250 ok"]
    async with delivery.host(replies={"RCPT": replies}, extensions=WITHOUT_DSN) as mx:
        people = [f"{number}@a.test" for number in range(5)]
        queue_id = await delivery.send(*people, notify="SUCCESS,FAILURE")
        assert list(states(await delivery.done(queue_id)).values()).count("relayed") == 4
        assert len(mx.envelopes) == 2
    assert delivery.reporter.reported == [("relayed", [*people[:3], people[4]])]
    assert delivery.reporter.failures_reported == [(people[3], "5.1.1")]
