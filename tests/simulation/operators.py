"""Operators, who hold, release, cancel, reroute and retry what they please.

On the path: as the command line does, through the spool's desk.
Holds: what they do is by the seed's choice; reports are left alone.
Fails: never; a spool that cannot is an answer too.
Standards: docs/names.md (Commands).
"""

from typing import Any

from relay.message.nexthop import NextHop
from relay.spool.operating import Operation, Order
from relay.spool.types import Selector, SpoolError
from tests.simulation.ledger import Ledger
from tests.simulation.world import World

_HOLD_S = (60.0, 3000.0, 1e6)


async def operate(node: Any, ledger: Ledger, world: World) -> None:
    """Do something to some of the queue."""
    rng = world.rng
    operation = rng.choice(list(Operation))
    ids = sorted({one.queue_id for one in ledger.tries if one.queue_id})
    selector = Selector(all=True)
    if operation in (Operation.CANCEL, Operation.REROUTE) or rng.random() < 0.5:
        if not ids:
            return
        selector = Selector(ids=tuple(rng.sample(ids, min(len(ids), rng.randint(1, 4)))))
    until_us = None
    if operation is Operation.HOLD and rng.random() < 0.5:
        until_us = node.clock.steady_us() + int(rng.choice(_HOLD_S) * 1e6)
    elsewhere = NextHop.parse(rng.choice(("mx:d0.test", "mx:d1.test")))
    order = Order(
        operation=operation,
        selector=selector,
        who="simulated operator",
        until_us=until_us,
        as_before=operation is Operation.RELEASE and rng.random() < 0.3,
        to=(lambda _address: elsewhere) if operation is Operation.REROUTE else None,
        to_text=str(elsewhere) if operation is Operation.REROUTE else "",
        dry_run=rng.random() < 0.1,
    )
    try:
        node.life.doing.append("an order")
        node.life.may_die(rng)
        if operation is Operation.REROUTE:
            ledger.waits.rerouted(selector.ids)
        changed = await node.spool.desk.carry_out(order)
    except SpoolError as error:
        world.note("operator:", operation, error)
    else:
        world.note("operator:", operation, changed.counts)
        if operation is Operation.REROUTE:
            ledger.rerouted_s |= dict.fromkeys(selector.ids, world.clocks.steady_s())
        for result, count in changed.counts.items():
            world.reached[f"operation: {operation}, {result}"] += count * (not order.dry_run)
    finally:
        node.life.doing.remove("an order")
