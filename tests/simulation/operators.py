"""Operators that hold, release, cancel, reroute and retry random parts of the queue.

The seed chooses the commands; reports are never selected. The answer to a command is compared with
what happens. A SpoolError is a valid answer. See docs/names.md (Commands).
"""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from relay.base.message.nexthop import Destination, NextHop
from relay.store.spool.queue_commands import CommandReport, CommandResult, Operation, QueueCommand
from relay.store.spool.types import Key, Selector, SpoolError
from tests.simulation.ledger import Ledger
from tests.simulation.world import World

_HOLD_S = (60.0, 3000.0, 1e6)
_LISTED_MAX = 1000
_CLOCKS_US = 1_000_000  # the maximum difference of two readings of queue time
_WHO = "simulated operator"
Work = Callable[[Any, Ledger, World], Coroutine[None, None, None]]
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


async def operate(node: Any, ledger: Ledger, world: World) -> None:
    """Execute a random command on a random part of the queue."""
    rng = world.rng
    operation = rng.choice(list(Operation))
    ids = _ids(ledger)
    selector = Selector(all=True)
    if operation in (Operation.CANCEL, Operation.REROUTE) or rng.random() < 0.5:
        if not ids:
            return
        selector = Selector(ids=tuple(rng.sample(ids, min(len(ids), rng.randint(1, 4)))))
    until_us = None
    if operation is Operation.HOLD and rng.random() < 0.5:
        until_us = node.clock.queue_us() + int(rng.choice(_HOLD_S) * 1e6)
    elsewhere = NextHop.parse(rng.choice(("mx:d0.test", "mx:d1.test")))
    order = QueueCommand(
        operation=operation,
        selector=selector,
        who=_WHO,
        until_us=until_us,
        as_before=operation is Operation.RELEASE and rng.random() < 0.3,
        to=(lambda _address, _sender: Destination(elsewhere, chosen=True))
        if operation is Operation.REROUTE
        else None,
        to_text=str(elsewhere) if operation is Operation.REROUTE else "",
        dry_run=rng.random() < 0.1,
    )
    await _execute(order, node, ledger, world)


async def decide_on_held(node: Any, ledger: Ledger, world: World) -> None:
    """Release or cancel some of what is held."""
    listed = await node.spool.queue_admin.list(Selector(state="held"), limit=_LISTED_MAX)
    ids = sorted({one["id"] for one in listed} & set(_ids(ledger)))
    if not ids:
        return
    operation = world.rng.choice((*(3 * (Operation.RELEASE,)), Operation.CANCEL))
    selector = Selector(ids=tuple(world.rng.sample(ids, (len(ids) + 1) // 2)))
    order = QueueCommand(operation=operation, selector=selector, who=_WHO)
    await _execute(order, node, ledger, world)


async def cancel_in_flight(node: Any, ledger: Ledger, world: World) -> None:
    """Cancel an entry while a connection has it; nothing if none has any."""
    if ids := ids_in_flight(node, ledger):
        selector = Selector(ids=(world.rng.choice(ids),))
        order = QueueCommand(operation=Operation.CANCEL, selector=selector, who=_WHO)
        await _execute(order, node, ledger, world)


def ids_in_flight(node: Any, ledger: Ledger) -> list[str]:
    """The messages, but for reports, of which a connection has an entry."""
    in_flight = ledger.open.keys() - node.scheduler.waiting_among(ledger.open)
    return sorted({key[0] for key in in_flight} & set(_ids(ledger)))


class TimedHold:
    """An operator who holds what waits in the queue, for a time."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self.is_done = False

    async def hold(self, node: Any, ledger: Ledger, world: World) -> None:
        """Hold it, if there is any mail."""
        ids = set(_ids(ledger))
        listed = await node.spool.queue_admin.list(Selector(all=True), limit=_LISTED_MAX)
        chosen = {one["id"] for one in listed if one["state"] in ("queued", "deferred")} & ids
        if not chosen:
            return
        order = QueueCommand(
            operation=Operation.HOLD,
            selector=Selector(ids=tuple(sorted(chosen))),
            who=_WHO,
            until_us=node.clock.queue_us() + int(self._hold_s * 1e6),
        )
        self.is_done = await _execute(order, node, ledger, world) is not None


class Pause:
    """An operator who holds some mail and later releases it as before."""

    def __init__(self) -> None:
        self._before: dict[Key, tuple[int, int]] = {}  # attempts, and the due time in queue time
        self._operated: dict[Key, int] = {}

    async def hold(self, node: Any, ledger: Ledger, world: World) -> None:
        """Hold what is in the queue, and note how it was."""
        ids, offset_us = set(_ids(ledger)), _ahead_us(node)
        operated = ledger.operated.copy()
        listed = await node.spool.queue_admin.list(Selector(all=True), limit=_LISTED_MAX)
        before = {_key(one): one for one in listed if one["id"] in ids}
        if not before:
            return
        selector = Selector(ids=tuple(sorted({key[0] for key in before})))
        order = QueueCommand(operation=Operation.HOLD, selector=selector, who=_WHO)
        changed = await _execute(order, node, ledger, world)
        for one in changed.entries if changed else ():
            key, was = _key(one), before.get(_key(one))
            if one["result"] != CommandResult.DONE or was is None:
                continue
            if ledger.operated[key] != operated[key] + 1:
                continue  # another operator has changed it between the list and this hold
            if was["state"] in ("queued", "deferred") and was["attempts"] == one["attempts"]:
                self._before[key] = (one["attempts"], _steady_us(was["due"], offset_us))
                self._operated[key] = ledger.operated[key]

    async def release(self, node: Any, ledger: Ledger, world: World) -> None:
        """Release what nobody else has changed, and see that it is as it was."""
        keys = [key for key, count in self._operated.items() if count == ledger.operated[key]]
        ids = sorted({key[0] for key in keys if not ledger.unanswered[key[0]]})
        if not ids:
            return
        offset_us, begun_us = _ahead_us(node), node.clock.queue_us()
        selector = Selector(ids=tuple(ids))
        order = QueueCommand(
            operation=Operation.RELEASE, selector=selector, who=_WHO, as_before=True
        )
        changed = await _execute(order, node, ledger, world)
        for one in changed.entries if changed else ():
            if one["result"] != CommandResult.DONE or _key(one) not in keys:
                continue
            attempts, before_us = self._before[_key(one)]
            state = "deferred" if attempts else "queued"
            when = "later" if before_us > begun_us else "now"
            world.reached[f"released as before: {state}, due {when}"] += 1
            due_us = _steady_us(one["due"], offset_us)
            earliest_us = max(before_us, begun_us) - _CLOCKS_US
            latest_us = max(before_us, node.clock.queue_us()) + _CLOCKS_US
            if one["state"] != state or not earliest_us <= due_us <= latest_us:
                world.fault(
                    f"invariant 9: {_key(one)} was {state} before its hold, and is {one['state']}"
                    f" after it, due {(due_us - before_us) / 1e6:.1f} s later than before"
                )


async def _execute(
    order: QueueCommand, node: Any, ledger: Ledger, world: World
) -> CommandReport | None:
    """Return the answer, None where the spool gives none."""
    rng = world.rng
    unclaimed = {key: epoch for key, epoch in ledger.epochs.items() if key not in ledger.open}
    if not order.dry_run:
        ledger.asked(order)
    try:
        node.life.doing.append("an order")
        node.life.may_die(rng)
        if order.operation is Operation.REROUTE:
            ledger.waits.rerouted(order.selector.ids)
        changed: CommandReport = await node.spool.queue_admin.execute(order)
    except SpoolError as error:
        world.note("operator:", order.operation, error)
        ledger.answer_lost()
        return None
    finally:
        node.life.doing.remove("an order")
    world.note("operator:", order.operation, changed.counts)
    if order.operation is Operation.REROUTE:
        ledger.rerouted_s |= dict.fromkeys(order.selector.ids, world.clocks.steady_s())
    for result, count in changed.counts.items():
        world.reached[f"operation: {order.operation}, {result}"] += count * (not order.dry_run)
    if not order.dry_run:
        ledger.answered(order, changed, unclaimed=unclaimed)
    return changed


def _ids(ledger: Ledger) -> list[str]:
    return sorted({one.queue_id for one in ledger.tries if one.queue_id})


def _key(listed: dict[str, Any]) -> Key:
    return listed["id"], listed["entry"]


def _ahead_us(node: Any) -> int:
    """Return how far the relay's reported times are ahead of queue time."""
    offset_us: int = node.clock.time_us() - node.clock.queue_us()
    return offset_us


def _steady_us(reported: str, offset_us: int) -> int:
    return (datetime.fromisoformat(reported) - _BEGIN) // timedelta(microseconds=1) - offset_us
