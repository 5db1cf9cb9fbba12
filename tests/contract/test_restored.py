"""What a restore holds: it is listed, does not expire, and is let go as it was."""

import pytest
import uvloop
from msgspec import structs

from relay.base.clock import rfc3339
from relay.base.crashpoints import CrashPoints
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import CAPTURE
from relay.base.observe.metrics import Metrics
from relay.store import spool as spools
from relay.store.journeys.details import RoutedDetail
from relay.store.journeys.events import Event
from relay.store.spool.types import (
    DueQuery,
    PriorityLevel,
    Selector,
    SpoolInUseError,
    SpoolNotEmptyError,
)
from tests.support.operator import ALL, HOUR_US, command, operations, reroute

RESTORED = Selector(restored=True)
LARGE = b"Subject: large\r\n\r\n" + b"x" * 200_000


async def hold_restored(spool, backed_up_us: int):
    order = command("hold", why="restored", backed_up_us=backed_up_us)
    return (await spool.queue_admin.execute(order)).as_json()


async def listed(spool, selector: Selector = RESTORED):
    return [
        (one["id"], one["state"], one.get("restored", False), one["expires"])
        for one in await spool.queue_admin.list(selector, limit=100)
    ]


async def is_due(spool, now_us: int) -> bool:
    found = [await spool.claim_due(now_us, 10, DueQuery(level)) for level in PriorityLevel]
    return any(one.claims for one in found)


async def test_a_copy_is_restored_where_no_spool_is(
    storage, elsewhere, copied, restored, spool, make, clock
) -> None:
    accepted = await spool.accept(make(content=LARGE), submission_key="k")
    await restored(copied())
    target = spools.storage(elsewhere)
    assert target.exists()
    if elsewhere.spool.is_file:
        assert all(target.has_part(one) for one in elsewhere.state_dir.iterdir())
        files = [one for one in elsewhere.state_dir.rglob("*") if one.is_file()]
        assert {one.stat().st_mode & 0o777 for one in files} == {0o600}
    assert not target.has_part(elsewhere.state_dir / "token-key.json")
    again = spools.open(elsewhere, clock=clock, crash=CrashPoints(), metrics=Metrics())
    await again.start()
    assert (await again.accept(make(), submission_key="k")).queue_id == accepted.queue_id
    (claim,) = (await again.claim_due(clock.queue_us() + HOUR_US, 9, DueQuery())).claims
    assert await again.read_content(claim.content_id) == LARGE
    await again.stop()


async def test_nothing_is_restored_over_a_spool(elsewhere, copied, restored, spool, make) -> None:
    if elsewhere.spool.is_file:
        pytest.skip("relay restore looks at the directory")
    await spool.accept(make())
    copy = copied()
    await restored(copy)
    with pytest.raises(SpoolNotEmptyError, match="the schema is not empty: found body"):
        await restored(copy)
    assert spools.storage(elsewhere).exists()


async def test_nobody_joins_before_a_restoration_is_complete(
    elsewhere, copied, restored, spool, make, clock
) -> None:
    if elsewhere.spool.is_file:
        pytest.skip("relay restore has the lock of the directory")
    await spool.accept(make())

    async def start(*, alone: bool) -> None:
        metrics = Metrics()
        engine = spools.open(
            elsewhere, clock=clock, crash=CrashPoints(), metrics=metrics, alone=alone
        )
        try:
            await engine.start()
        finally:
            await engine.stop()

    def meanwhile() -> None:
        uvloop.run(start(alone=True))
        uvloop.run(start(alone=False))

    copy = copied()
    with pytest.raises(SpoolInUseError):
        await restored(copy, meanwhile)
    assert not spools.storage(elsewhere).exists()
    await restored(copy)
    await start(alone=False)


async def test_submission_keys_that_are_known_are_remembered_again(spool, make, clock) -> None:
    await spool.accept(make(), submission_key="known")
    clock.advance(7 * 86400)
    assert set(await spool.renew_submission_keys(["known", "unknown"])) == {"known"}
    clock.advance(7 * 86400)
    await spool.maintenance.prune(10 * 365 * 86400.0)
    assert (await spool.accept(make(), submission_key="known")).repeated
    assert not (await spool.accept(make(), submission_key="unknown")).repeated


async def test_restored_mail_is_held_and_never_expires(spool, make, defer, clock) -> None:
    fresh = (await spool.accept(make(), claim=False)).queue_id
    waiting = await defer()
    answer = await hold_restored(spool, clock.queue_us())
    assert (answer["matched"], answer["done"]) == (2, 2)
    assert await listed(spool) == [(one, "held", True, None) for one in sorted((fresh, waiting))]
    assert [one["reason"] for one in answer["entries"]] == ["olga: restored"] * 2
    assert not await is_due(spool, clock.queue_us() + 100 * 365 * 86400_000_000)
    assert (await hold_restored(spool, clock.queue_us()))["unchanged"] == 2


async def test_all_is_let_go_at_once(spool, make, defer, clock) -> None:
    await spool.accept(make(), claim=False)
    await defer()
    began_us = clock.queue_us()
    (first, *_) = await spool.queue_admin.list(ALL, limit=10)
    await hold_restored(spool, began_us)
    clock.advance(30 * 86400)
    dry = (await spool.queue_admin.execute(command("release", RESTORED, dry_run=True))).as_json()
    assert (dry["done"], len(await listed(spool))) == (2, 2)
    answer = (await spool.queue_admin.execute(command("release", RESTORED))).as_json()
    assert (answer["done"], await listed(spool)) == (2, [])
    assert {one["state"] for one in answer["entries"]} == {"queued"}
    (now, *_) = await spool.queue_admin.list(ALL, limit=10)
    assert now["id"] == first["id"]
    assert first["expires"] < rfc3339(clock.time_us()) < now["expires"]
    assert await is_due(spool, clock.queue_us())


async def test_what_was_held_before_stays_held_and_may_expire_again(spool, make, clock) -> None:
    await spool.accept(make(), claim=False)
    await spool.queue_admin.execute(command("hold", why="suspicious"))
    await hold_restored(spool, clock.queue_us())
    clock.advance(30 * 86400)
    assert await listed(spool) == []  # what its release lets go
    assert [one[1:] for one in await listed(spool, ALL)] == [("held", True, None)]
    dry = (await spool.queue_admin.execute(command("release", RESTORED, dry_run=True))).as_json()
    answer = (await spool.queue_admin.execute(command("release", RESTORED))).as_json()
    for one in (dry, answer):
        assert (one["done"], one["unchanged"]) == (0, 1)
        assert one["entries"][0]["note"] == "it was held before the backup, and stays held"
    ((_, state, is_restored, expires),) = await listed(spool, ALL)
    assert (state, is_restored, expires > rfc3339(clock.time_us())) == ("held", False, True)
    answer = (await spool.queue_admin.execute(command("release"))).as_json()
    assert answer["done"] == 1


async def test_a_hold_with_an_end_does_not_end_by_itself(spool, make, clock) -> None:
    await spool.accept(make(), claim=False)
    until_us = clock.queue_us() + HOUR_US
    await spool.queue_admin.execute(command("hold", until_us=until_us))
    assert (await hold_restored(spool, clock.queue_us()))["done"] == 1
    assert not await is_due(spool, until_us + HOUR_US)
    assert (await spool.queue_admin.execute(command("release", RESTORED))).as_json()["done"] == 1


async def test_entries_of_one_message_are_let_go_one_by_one(spool, make, clock) -> None:
    message = make({"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]})
    queue_id = (await spool.accept(message, claim=False)).queue_id
    await hold_restored(spool, clock.queue_us())
    clock.advance(30 * 86400)
    first = Selector(ids=(f"{queue_id}-1",))
    assert (await spool.queue_admin.execute(command("release", first))).as_json()["done"] == 1
    assert [(name, state) for name, state, *_ in await listed(spool)] == [(queue_id, "held")]
    clock.advance(30 * 86400)
    assert (await spool.queue_admin.execute(command("release", RESTORED))).as_json()["done"] == 1
    assert all(one[3] > rfc3339(clock.time_us()) for one in await listed(spool, ALL))


@pytest.mark.parametrize("operation", ["reroute", "hold"])
async def test_other_operations_leave_it_restored(spool, make, clock, operation) -> None:
    await spool.accept(make(), claim=False)
    await hold_restored(spool, clock.queue_us())
    order = reroute("smtp://127.0.0.1:26") if operation == "reroute" else command("hold")
    await spool.queue_admin.execute(order)
    assert len(await listed(spool)) == 1
    assert (await spool.queue_admin.execute(command("release", RESTORED))).as_json()["done"] == 1


async def test_a_hold_with_an_end_replaces_that_of_the_restore(spool, make, clock) -> None:
    await spool.accept(make(), claim=False)
    await hold_restored(spool, clock.queue_us())
    until_us = clock.queue_us() + HOUR_US
    await spool.queue_admin.execute(command("hold", until_us=until_us))
    assert await listed(spool) == []
    assert await is_due(spool, until_us)


async def test_the_events_since_the_backup_are_missing(restart, make, clock) -> None:
    """A reader that had some of them is told so once, and gets those that follow."""

    async def accept(spool) -> str:
        events = (Event(clock.time_us(), RoutedDetail()),)
        return (await spool.accept(make(events=events), claim=False)).queue_id

    spool = await restart()
    await accept(spool)
    cursor = await spool.last_event()
    clock.advance(60)
    spool = await restart()
    await spool.note_restored()
    begin = await spool.last_event()
    queue_id = await accept(spool)
    found = await spool.events_after(cursor, limit=9)
    assert cursor < begin == found.removed_to
    ((number, event),) = found.events
    assert (event.queue_id, number > begin) == (queue_id, True)


async def test_captured_mail_is_left(spool, make, clock) -> None:
    message = make()
    entry = structs.replace(message.entries[0], next_hop=CAPTURE)
    await spool.accept(structs.replace(message, entries=(entry,)), claim=False)
    answer = await hold_restored(spool, clock.queue_us())
    assert (answer["done"], answer["entries"][0]["state"]) == (0, RecipientState.CAPTURED)
    assert await listed(spool) == []


async def test_the_journey_says_who_restored_it(spool, make, clock) -> None:
    queue_id = (await spool.accept(make(), claim=False)).queue_id
    await hold_restored(spool, clock.queue_us())
    (held,) = await operations(spool, queue_id)
    assert (held["who"], held["why"], held["restored"]) == ("olga", "restored", True)


async def test_a_copy_tells_what_was_accepted_since(storage, copied, spool, make) -> None:
    await spool.accept(make(), submission_key="before")
    copy = copied()
    parts = sorted(copy.iterdir())
    message = make({"mx:a.test": ["x@a.test"], "local": ["y@b.test"]})
    queue_id = (await spool.accept(message, submission_key="since")).queue_id
    keys = ["before", "since", "never"]
    names = [f"{queue_id}-1", f"{queue_id}-2"]
    assert sorted(storage.accepted_since(copy, keys)) == [("since", one) for one in names]
    assert {key for key, _ in storage.accepted_since(None, keys)} == {"before", "since"}
    assert sorted(copy.iterdir()) == parts
