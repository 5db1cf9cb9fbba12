"""Delivery by LMTP: recipients are recorded as their replies come, and are then delivered."""

import asyncio

import pytest

from tests.support.journeys import outcomes, states
from tests.support.remote_mx import DROP, EXTENSIONS, STALL

PEOPLE = ("a@a.test", "b@a.test", "c@a.test")
WITHOUT_DSN = tuple(one for one in EXTENSIONS if one != "DSN")
ALL_DELIVERED = dict.fromkeys(PEOPLE, "delivered")


async def until_states(delivery, queue_id: str, expected: dict[str, str]) -> None:
    async with asyncio.timeout(120):
        while states(await delivery.spool.journey(queue_id)) != expected:
            await delivery.changed.get()


@pytest.mark.parametrize("offers_dsn", [True, False])
async def test_accepted_recipients_are_delivered_while_others_have_no_reply(delivery, offers_dsn):
    gate = asyncio.Event()
    extensions = EXTENSIONS if offers_dsn else WITHOUT_DSN
    async with delivery.host(
        lmtp=True, gates={"DOT c@a.test": gate}, extensions=extensions
    ) as host:
        queue_id = await delivery.send(*PEOPLE, notify="SUCCESS")
        await until_states(delivery, queue_id, ALL_DELIVERED | {"c@a.test": "queued"})
        assert delivery.reporter.reported == []  # one report names all
        gate.set()
        journey = await delivery.done(queue_id)
    assert states(journey) == ALL_DELIVERED
    assert [outcomes(journey, one) for one in PEOPLE] == [["delivered"]] * 3
    assert delivery.reporter.reported == ([] if offers_dsn else [("delivered", [*PEOPLE])])
    assert host.sessions == 1


@pytest.mark.parametrize("fault", [DROP, STALL, "250 too\r\n250 many", "what is this"])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_after_a_fault_only_recipients_without_a_reply_get_the_message_again(
    delivery, place: int, fault: str
) -> None:
    dot = {PEOPLE[place]: [fault, "250 2.1.5 saved"]}
    delivery.timeouts = type(delivery.timeouts)(dot_s=1.0)
    async with delivery.host(lmtp=True, dot=dot) as host:
        journey = await delivery.done(await delivery.send(*PEOPLE))
        await delivery.done(await delivery.send("d@a.test"))
    assert states(journey) == ALL_DELIVERED
    answered = [one.addresses[0] for one in host.envelopes if one.answered == 250]
    if fault.startswith("250"):  # a surplus reply is taken for the next recipient's
        assert [outcomes(journey, one)[-1] for one in PEOPLE] == ["delivered"] * 3
        assert answered.count(PEOPLE[0]) == 1
        return
    if fault in (DROP, STALL):
        assert answered == [*PEOPLE, "d@a.test"]
    for one in PEOPLE[:place]:
        assert outcomes(journey, one) == ["delivered"]
        assert answered.count(one) == 1
    for one in PEOPLE[place:]:
        assert outcomes(journey, one) == ["indeterminate", "delivered"]
