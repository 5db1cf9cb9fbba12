"""What an earlier version queued with U-labels: it is retried, reported and cancelled as others are."""

from relay.base.message.outcome import Delivered, Evidence
from relay.formats.read_report import RemoteClaim, RemoteReport
from relay.store.spool.types import ClaimResult, DueQuery, PriorityLevel, Selector
from tests.support.operator import HOUR_US, command

COPIED = Delivered(Evidence("2.1.5", "250 2.1.5 ok", graph_id="l1"))


async def test_a_queued_u_label_is_an_a_label_for_delivery_reports_and_the_operator(
    spool, make, defer, clock
) -> None:
    facts = {"reverse_path": "älice@büro.test", "message_id": "<m@x>"}
    facts["expires_us"] = clock.queue_us() + 9 * HOUR_US
    queue_id = await defer({"mx:xn--bcher-kva.test": ["X@bücher.test"]}, **facts)
    other = await defer({"mx:b.test": ["x@b.test"]})
    for pattern in ("x@bücher.test", "*@xn--bcher-kva.test", "x@*.TEST"):
        listed = await spool.queue_admin.list(Selector(recipient=pattern), limit=10)
        assert queue_id in [one["id"] for one in listed]
        assert (other in [one["id"] for one in listed]) is pattern.startswith("x@*")
    for selector in (
        Selector(sender="*@xn--bro-hoa.test"),
        Selector(sender="*@büro.test"),
        Selector(domain="bücher.test"),
        Selector(next_hop="bücher.test"),
    ):
        listed = await spool.queue_admin.list(selector, limit=10)
        assert [one["id"] for one in listed] == [queue_id]
    for key in ("x@bücher.test", "X@xn--bcher-kva.test", "älice@xn--bro-hoa.test"):
        assert await spool.find_queue_ids(key, account=None, limit=9) == [queue_id]

    clock.advance(HOUR_US // 1_000_000 + 1)
    due = await spool.claim_due(clock.queue_us(), 50, DueQuery(PriorityLevel.UNREACHABLE))
    (claim,) = [one for one in due.claims if one.message.id == queue_id]
    assert claim.message.envelope.reverse_path == "älice@xn--bro-hoa.test"
    assert [one.path.address for one in claim.recipients] == ["X@xn--bcher-kva.test"]
    await spool.release([claim])

    gone = RemoteClaim("", "x@xn--bcher-kva.test", "failure", "5.1.1", "550 5.1.1 no such user", "")
    to = "älice@xn--bro-hoa.test"
    (carried,) = (await spool.accept(make({"local": [to]}, reverse_path="", trusted=False))).claims
    report = (RemoteReport("", "<m@x>", "mx.a.test", (gone,)), (to,))
    await spool.record(ClaimResult(carried, 9, {1: COPIED}, remote_report=report))
    journey = await spool.journey(queue_id)
    assert journey.steps[-1].detail["recipients"] == ["X@bücher.test"]  # history keeps its text

    answer = await spool.queue_admin.execute(
        command("cancel", Selector(domain="xn--bcher-kva.test"))
    )
    assert answer.counts["done"] == 1
    assert [one.address for one in (await spool.journey(queue_id)).recipients] == ["X@bücher.test"]


async def test_capital_letters_beyond_ascii_are_found_as_their_small_ones(spool, defer) -> None:
    made = {
        letter: await defer({"mx:b.test": [f"r-{letter}@b.test"]}, reverse_path=f"{letter}@a.test")
        for letter in "Ää"
    }
    for typed in "Ää":
        for selector in (
            Selector(sender=f"{typed}@a.test"),
            Selector(recipient=f"R-{typed}@b.test"),
            Selector(sender=f"{typed}*"),
        ):
            listed = await spool.queue_admin.list(selector, limit=10)
            assert {row["id"] for row in listed} == {*made.values()}
        names = await spool.find_queue_ids(f"r-{typed}@b.test", account=None, limit=9)
        assert {*names} == {*made.values()}
