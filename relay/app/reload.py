"""Reload the configuration of a running service, at SIGHUP or a request of `relay reload`, and say
what came of it: in the log, in the answer, in the metrics, to the service manager.

Which keys a reload applies is decided in relay/settings/reloadable_keys.py; that a faulty file
changes nothing in `configuration`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial

from msgspec import Struct

from relay.app.configuration import ActiveConfiguration, Configuration
from relay.base.clock import Clock, rfc3339
from relay.base.phrases import counted
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.routing.route_table import RouteTable
from relay.settings.document import Fault, SettingsError
from relay.settings.reloadable_keys import ChangedKey

_log = get_logger("app")
_FAULTS_LOGGED = 20
_FAULTS_SHOWN = 100


class ReloadResult(Struct, frozen=True):
    """The JSON of POST /reload. Faults of tenants' rules keep only these rules out."""

    reloaded: bool  # False: the previous configuration stays active
    faults: tuple[str, ...]  # the first ones; a last line has the number of the others
    needs_restart: tuple[ChangedKey, ...]
    rules: int  # that are active
    new_certificates: int  # listeners with another one


class Reloader:
    """Reloads the configuration, one reload at a time.

    What is requested during a reload, however often, is one more reload after it, since the running
    one may have read a file before it was changed.
    """

    def __init__(
        self, active: ActiveConfiguration, table: RouteTable, *, clock: Clock, metrics: Metrics
    ) -> None:
        """`table` becomes the table that a reload has read."""
        self._active, self._table = active, table
        self._clock, self._metrics = clock, metrics
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[ReloadResult] | None = None  # the one that has not begun
        self._show_tenants()
        self.notify: Callable[..., None] = lambda *_: None  # sends states to the service manager
        # lets the rooms use what was read: see use_settings()
        self.apply: Callable[..., None] = lambda **_: None
        # awaited after it, before the reload is reported
        self.applied: Callable[[], Awaitable[None]] | None = None

    def request(self) -> "asyncio.Task[ReloadResult]":
        """Return a reload that begins after this call, and after the running one."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run())
        return self._next

    async def end(self) -> None:
        """Wait for the running reload, and the next one."""
        if self._next is not None:
            await self._next
        async with self._turn:
            pass

    async def _run(self) -> ReloadResult:
        async with self._turn:
            self._next = None
            began_us = int(self._clock.real_s() * 1_000_000)
            self.notify("RELOADING=1", f"MONOTONIC_USEC={began_us}")
            result = await self._load()
            self._metrics.reload_successful.set(not result.faults)
            status = f"reloaded at {rfc3339(self._clock.time_us())}"
            if not result.reloaded:
                status = f"not reloaded, the previous configuration is active: {result.faults[0]}"
            elif trouble := self._active.impaired():
                status = f"{status}; {trouble}"
            self.notify("READY=1", f"STATUS={status}")
            return result

    async def _load(self) -> ReloadResult:
        changed: list[ChangedKey] = []
        faults: tuple[str, ...] = ()
        renewed = 0

        def note(key: ChangedKey) -> None:
            changed.append(key)
            _log.warning("a key of relay.toml has changed: a restart is needed", **asdict(key))

        try:
            read = await asyncio.to_thread(self._active.read, note)
            counted_rules = await asyncio.to_thread(read.rules.outcomes)
            self._use(read)
            if self.applied is not None:
                await self.applied()
            self._metrics.keep_rules(counted_rules)
            renewed = len(read.new_pairs)
        except SettingsError as error:
            faults = _shown(error.faults)
            for fault in faults[:_FAULTS_LOGGED]:
                _log.error("not reloaded", fault=fault)
            _log.error("the previous configuration stays active", faults=len(error.faults))
        except Exception as error:  # noqa: BLE001 - a failed reload must not end the service
            faults = (f"internal error: {error!r}; a part may be in force: restart the service",)
            _log.exception("the reload failed: restart the service, as a part may be in force")
        rules, is_reloaded = self._active.rules().rule_count, not faults
        if is_reloaded:
            tenants = self._active.tenants().values()
            faults = _shown([fault for one in tenants for fault in one.faults])
            if not faults:
                self._metrics.reload_success_time.set(self._clock.time_us() / 1_000_000)
            _log.info("reloaded", rules=rules, new_certificates=renewed)
        return ReloadResult(is_reloaded, faults, tuple(changed), rules, renewed)

    def _use(self, read: Configuration) -> None:
        """Replace all that was read. Nothing is awaited: no message meets a part of it."""
        before = self._active.settings
        self._active.use(read)
        self._show_tenants()
        routes = self._table.use(read.routes)
        self.apply(before=before, routes=routes)
        kinds = {"added": routes.added, "changed": routes.changed, "removed": routes.removed}
        if any(kinds.values()):
            names = {kind: ", ".join(names) for kind, names in kinds.items() if names}
            _log.info("routes have changed", **names)

    def _show_tenants(self) -> None:
        """Let the metric have the age of each tenant's rules."""
        metric = self._metrics.policy_set_age
        metric.clear()
        for name, one in self._active.tenants().items():
            age = metric.labels(name)
            if one.faults:
                age.set_function(partial(self._age_s, one.good_us))

    def _age_s(self, since_us: int) -> float:
        return max(0.001, (self._clock.time_us() - since_us) / 1_000_000)


def _shown(faults: Sequence[Fault]) -> tuple[str, ...]:
    """Return the first faults as text, and how many more there are."""
    found = tuple(map(str, faults[:_FAULTS_SHOWN]))
    more = len(faults) - len(found)
    return (*found, f"and {counted(more, 'more fault')}") if more else found
