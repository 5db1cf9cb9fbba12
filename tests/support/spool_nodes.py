"""Nodes of a spool on PostgreSQL, opened without a daemon, whose time and beats a test sets."""

from collections.abc import Callable
from pathlib import Path

from relay.base.clock import Clock, SystemClock, boot_s
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.settings.postgres_url import parse_postgres_url
from relay.store.spool.postgres.nodes import BEAT_S, NodeIdentity
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.shared.accepted import CapturedMail


class Elapsed:
    """The real time of one node, as a test sets it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def open_node(
    url: str,
    folder: Path,
    identity: NodeIdentity,
    *,
    clock: Clock | None = None,
    crash: CrashPoints | None = None,
    elapsed_s: Callable[[], float] = boot_s,
) -> PostgresSpool:
    """Return the spool of a URL as a node has it, which is not started."""
    node = PostgresSpool(
        parse_postgres_url(url),
        identity,
        folder,
        clock=clock or SystemClock(),
        crash=crash or CrashPoints(),
        metrics=Metrics(),
        submission_keep_s=86400,
        captured=CapturedMail(10**12),
    )
    node._writer.elapsed_s = elapsed_s
    return node


async def beats(node: PostgresSpool, elapsed: Elapsed, seconds: float) -> None:
    """Let a node beat for some time."""
    until_s = elapsed.now_s + seconds
    while elapsed.now_s < until_s:
        await node.keeper.beat()
        elapsed.now_s += BEAT_S
    await node.keeper.beat()
