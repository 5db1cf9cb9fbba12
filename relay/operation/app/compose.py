"""Build every room from the settings and pass each room its dependencies.

compose() starts and opens nothing that listens. It raises AlreadyRunningError, SpoolError,
OSError, SettingsError for a file system that lacks something, ValueError for a route, a network or
a mail root that cannot be used, and ImportError if the installation is not complete.
"""

from contextlib import ExitStack

from relay.base.clock import Clock, SystemClock
from relay.base.pressure import PressureLevel, PressureState
from relay.base.settings.document import SettingsError
from relay.base.settings.tree import Settings
from relay.operation.app.daemon import Daemon
from relay.operation.app.foundation import (
    Foundation,
    RelayDependencies,
    open_foundation,
    show_parts,
)
from relay.operation.app.front_door import build_front_door, build_http_servers, build_pages
from relay.operation.app.limit_alerts import LimitAlerts
from relay.operation.app.memory import memory_bound
from relay.operation.app.mta_sts import dns_of
from relay.operation.app.notifications import build_webhooks
from relay.operation.app.pressure_monitor import PressureMonitor, bounds_of
from relay.operation.app.probes import missing_capabilities
from relay.operation.app.settling import Settling
from relay.operation.app.state_dir import OwnerLock
from relay.operation.app.transport import SUBMISSIONS_MAX, Transport, build_transport, connect_parts
from relay.store.spool.usage import UsageLedger

_SLOW_DIVISOR = 4  # divides pickup's concurrency at pressure level SLOW


def compose(
    settings: Settings, sources: RelayDependencies, *, clock: Clock | None = None
) -> Daemon:
    """Return a daemon, not started. From now on it owns state_dir and the mail store."""
    missing = missing_capabilities(settings, with_root=sources.holds_root, is_start=True)
    if missing:
        raise SettingsError(missing.values())
    with ExitStack() as undo:
        lock = OwnerLock(settings.run_dir)
        lock.take()
        undo.callback(lock.give_back)
        base = open_foundation(settings, sources, clock=clock or SystemClock(), undo=undo)
        show_parts(base)
        transport = build_transport(base)
        webhooks = build_webhooks(base, transport.resolver)
        front_door = build_front_door(base, transport, webhooks)
        alerts = LimitAlerts(base, transport, webhooks)
        connect_parts(base, transport, webhooks, on_near=alerts.note)
        site = build_pages(base, front_door)
        subscriptions = front_door.subscriptions
        daemon = Daemon(
            base=base,
            lock=lock,
            transport=transport,
            http_servers=build_http_servers(base, front_door, site),
            end_pages=site.end,
            events=front_door.means.events,
            pressure=_pressure_monitor(base, transport),
            settling=Settling(
                transport.scheduler,
                transport.pickup,
                (transport.pickup_server, *transport.smtp_servers),
                front_door.graph,
                base.changes,
                [webhooks.in_progress]
                + ([subscriptions.in_progress] if subscriptions is not None else []),
            ),
            webhooks=webhooks,
            alerts=alerts,
            usage=UsageLedger(base.spool, base.usage, base.clock, node=settings.node_of_many),
            subscriptions=subscriptions,
        )
        undo.pop_all()
        return daemon


def _pressure_monitor(base: Foundation, transport: Transport) -> PressureMonitor:
    allowed = {
        PressureLevel.NORMAL: SUBMISSIONS_MAX,
        PressureLevel.SLOW: SUBMISSIONS_MAX // _SLOW_DIVISOR,
        PressureLevel.REFUSE: 1,
    }

    def use(state: PressureState) -> None:
        transport.pickup.limit_concurrency(allowed[state.queue])
        if transport.gate is not None:
            transport.gate.tell()

    base.spool.queue_shares.limit = base.settings.pressure.queue_entries
    memory = memory_bound(base.settings)
    return PressureMonitor(
        base.pressure,
        base.spool,
        bounds=bounds_of(base.settings, memory),
        memory=memory,
        mailboxes=base.root.path,
        metrics=base.metrics,
        clock=base.clock,
        on_change=use,
        on_measured=base.samples.keep,
        shrink=lambda is_short: dns_of(transport.resolver).forget_ended(are_all=is_short),
    )
