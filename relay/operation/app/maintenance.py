"""Periodic tasks: queue metrics, pruning of history, stale contents and uploads, clock anchor, keys
and secrets that end, milters that are down.

Each pass is bounded. A pass that fails is logged and repeated at the next interval. In the
dead-letter mailbox, mail that strangers cause (answers to reports, notices about mail of strangers)
is limited to a size: the oldest of it is removed. Other mail for the postmaster is never removed.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from msgspec import Struct
from prometheus_client import Gauge

from relay.base.clock import (
    Clock,
    ResumedTime,
    advanced_us,
    now_at_least_us,
    pause_after,
    sleep_in_step,
)
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import OAuthClient
from relay.delivery.oauth.client_secrets import secret_states
from relay.operation.app.state_dir import AlreadyRunningError
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.mail_root import ForeignRootError, MailRoot
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, SpoolError
from relay.store.spool.usage import UsageLedger
from relay.submission.outbox.restored import RestoredSubmissions
from relay.submission.outbox.store import FileStore
from relay.transport.refusals.day_files import RefusalFiles
from relay.transport.signing.keys import DAY_US, KeyRing

_log = get_logger("app")

_FIGURES_S = 1.0
_PRUNE_S = 600.0
_PRUNE_PAUSE_S = 0.05
_POLICIES_S = 3600.0
_MILTERS_S = 60.0
_DAY_S = 86400.0
_ANCHOR_S = 10.0
_ROOT_S = 1.0
_USAGE_S = 1.0
_WITHOUT_NODE_S = 5.0
_WITHOUT_NODE_PAUSE_S = 0.1
_CLOCK_DIFFERS_US = 60_000_000
_CLOCK_IS_BEHIND = (
    "the clock is behind the time of the last run: queue time continues from there; is the clock"
    " right?"
)
_MUCH_TIME_PASSED = (
    "the machine was restarted, and by its clock this much time passed since the last run: nothing"
    " expires before one more attempt, no history is removed for a day; is the clock right?"
)
_CLOCK_DIFFERS = (
    "the clock differs from queue time, which continues and follows slowly: the clock is or was"
    " wrong"
)


async def update_gauges(
    spool: SpoolEngine, metrics: Metrics, clock: Clock, *, set_others: Callable[[], None]
) -> None:
    """Set the gauges of the queue until cancelled; `set_others` sets those of other rooms."""
    fault, counted_s = RepeatedError(), clock.real_s()
    metrics.queue_entries_age.set_function(lambda: clock.real_s() - counted_s)
    while True:
        began = clock.real_s()
        set_others()
        try:
            await count_queue(spool, metrics, clock)
        except SpoolError as error:
            fault.log(_log.warning, "queue not counted", error)
        except Exception:  # noqa: BLE001 - an internal error: counting must go on
            _log.exception("counting failed")
        else:
            fault.clear()
            counted_s = began
        pause_s = pause_after(clock.real_s() - began, least_s=_FIGURES_S)
        await sleep_in_step(pause_s)  # real time: counting takes time of the machine


async def count_queue(spool: SpoolEngine, metrics: Metrics, clock: Clock) -> None:
    """Set the gauges of the queue once. Raises SpoolError."""
    counts = await spool.counts()
    for state, number in counts.entries.items():
        metrics.queue_entries.labels(state=state).set(number)
    age_us = clock.queue_us() - counts.oldest_us if counts.oldest_us is not None else 0
    metrics.queue_oldest.set(max(0, age_us) / 1_000_000)
    metrics.queue_unaccounted.set(counts.unaccounted)
    metrics.suppressed.set(await spool.suppression.count())
    await spool.queue_shares.update(sum(counts.entries.values()))


class PrunedHistory(Struct, frozen=True):
    """The stores that keep history, and the mailbox of dead letters."""

    spool: SpoolEngine
    submissions: RestoredSubmissions  # knows all that wait, and has the log
    refusals: RefusalFiles
    usage: UsageLedger
    dead_letters: Path  # a Maildir


async def prune_history(history: PrunedHistory, clock: Clock, *, keep_s: float) -> None:
    """Remove history that is older than spool.keep in small steps, until cancelled. Logs are
    removed by whole days.
    """

    async def prune() -> None:
        kept_s = keep_s + advanced_us(clock) / 1e6  # an advanced clock must not make history old
        while await history.spool.maintenance.prune(kept_s):
            await clock.sleep(_PRUNE_PAUSE_S, slack_s=math.inf)  # sleeps: lets others write
        keep_days = math.ceil(kept_s / _DAY_S)
        before_us = now_at_least_us(clock) - keep_days * DAY_US
        await prune_log(history.spool, history.submissions, before_us=before_us)
        await history.usage.prune()
        await history.spool.suppression.prune()
        await history.refusals.prune(before_us)
        if removed := await asyncio.to_thread(prune_answers, history.dead_letters):
            _log.info("answers to reports removed", answers=removed)

    await _repeat(prune, clock, interval_s=_PRUNE_S, fault="history not pruned")


async def prune_log(spool: SpoolEngine, submissions: RestoredSubmissions, *, before_us: int) -> int:
    """Remove the days of the submission log before `before_us`, but for those with a submission
    that waits or whose message the spool still has; return their number.
    """
    waiting = frozenset(await asyncio.to_thread(submissions.pending_ids))

    async def kept_of(ids: Sequence[str]) -> Collection[str]:
        return waiting.intersection(ids) or await spool.accepted_submissions(ids)

    return await submissions.log.prune(before_us, kept_of)


async def check_policies(check: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Call `check` at each interval until cancelled; it decides which policies are due."""
    await _repeat(check, clock, interval_s=_POLICIES_S, fault="policies not checked")


async def probe_milters(probe: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Probe each minute which milters are up, until cancelled."""
    await _repeat(probe, clock, interval_s=_MILTERS_S, fault="milters not probed")


async def _repeat(
    work: Callable[[], Awaitable[None]], clock: Clock, *, interval_s: float, fault: str
) -> None:
    """Run `work` at each interval until cancelled; log its errors as `fault`."""
    while True:
        try:
            await work()
        except (SpoolError, StoreError, OSError) as error:
            _log.warning(fault, error=str(error))
        except Exception:  # noqa: BLE001 - an internal error: the task must go on
            _log.exception(fault)
        await clock.sleep(interval_s, slack_s=math.inf)  # sleeps: the interval between passes


async def _attend(
    work: Callable[[], Awaitable[None]], report: Callable[[str], None], *, interval_s: float
) -> None:
    """Run `work` at each interval until cancelled. `report` gets an error once, until `work`
    succeeds again. It is for states that change without an event.
    """
    fault = RepeatedError()
    while True:
        try:
            await work()
        except (AlreadyRunningError, StoreError, SpoolError) as error:
            if fault.is_new(error):
                report(str(error))
        else:
            fault.clear()
        await sleep_in_step(interval_s)  # real time: mounts, disks, and the machine may stop


@dataclass(eq=False)
class MailRootAttendant:
    """Lets the store use only the mail root whose id is in the spool."""

    root: MailRoot  # of this node
    store: FileStore  # uses the mail root
    spool: SpoolEngine  # has the id of the mail root
    _: KW_ONLY
    name: str  # of the mail root in the spool
    is_shared: bool  # whether the spool may have ids of other mail roots too

    def __post_init__(self) -> None:
        self._recorded = ""
        self._takes_any = False
        self._is_known = False  # whether the mail root was compared with the id in the spool

    async def open(self, *, takes_any: bool) -> None:
        """Open the mail root whose id is in the spool; with `takes_any`, open any mail root.

        While the spool cannot be read, a mail root with submissions is opened, so that programs can
        send mail; record_id() compares the id later. Any other mail root is opened when the spool
        can be read. Raises ForeignRootError.
        """
        if takes_any:
            self._takes_any = self._is_known = True
            self.root.open("", may_take=True)
            return
        try:
            known_id, was_used = await self.spool.mail_root(self.name)
        except SpoolError:
            with suppress(ForeignRootError):
                self.root.open("", may_take=False)
            return
        self._is_known = True
        try:
            self.root.open(known_id, may_take=not was_used)
        except ForeignRootError as error:
            raise self._foreign(error) from None

    async def record_id(self) -> None:
        """Record the id of the mail root in the spool, if that is not yet done. Raises SpoolError,
        and ForeignRootError if the spool has another id.
        """
        if self._recorded == self.root.id:
            return
        known_id, _ = await self.spool.mail_root(self.name)
        if not self._takes_any:
            self._check_id(known_id)
        self._is_known = True
        root_id = await self.spool.record_mail_root(
            self.name, self.root.id, instead_of=known_id if self._takes_any else ""
        )
        self._check_id(root_id)  # another node may have recorded an id at the same time
        self._recorded = root_id

    def _check_id(self, known_id: str) -> None:
        try:
            self.root.check_id(known_id)
        except ForeignRootError as error:
            raise self._foreign(error) from None

    def _foreign(self, error: ForeignRootError) -> ForeignRootError:
        if not self.is_shared:
            return error
        return ForeignRootError(
            f"{error}; if it is another one on the same spool, give it a name of its own:"
            f' [mailboxes] store = "second", not "{self.name}"'
        )

    async def run(self) -> None:
        """Check the mail root each second, until cancelled."""

        async def look() -> None:
            if not (self._is_known or self.root.id):
                await self.open(takes_any=False)
            await self.store.attend_root()
            await self.record_id()

        def report(reason: str) -> None:
            _log.error("the mail root cannot be used", reason=reason)

        await _attend(look, report, interval_s=_ROOT_S)


async def write_clock_anchor(store: FileStore) -> None:
    """Write the clock anchor of the mail store at each interval until cancelled, and at the end."""

    def report(error: str) -> None:
        _log.warning("the clock anchor cannot be written", error=error)

    try:
        await _attend(store.keep_anchor, report, interval_s=_ANCHOR_S)
    finally:
        with suppress(StoreError):
            await store.keep_anchor()


async def keep_usage(ledger: UsageLedger, tell: Callable[[], Awaitable[None]]) -> None:
    """Each second until cancelled, store what accounts have sent, read what they have sent by other
    nodes, and call `tell`, which warns about accounts near a limit. At the end, store it again.
    """

    async def keep() -> None:
        await ledger.exchange()
        await tell()

    def report(error: str) -> None:
        _log.warning("the counts of what accounts send are in memory only", error=error)

    try:
        await _attend(keep, report, interval_s=_USAGE_S)
    finally:
        with suppress(SpoolError):
            await ledger.exchange()


def log_continued(resumed: ResumedTime | None, *, offset_us: int) -> None:
    """Log how this start continues the queue time, if it differs from the wall clock.

    `offset_us` is how far the wall clock is ahead of queue time.
    """
    if resumed is None:
        return
    passed_us = resumed.wall_passed_us
    if not resumed.is_exact and passed_us < -_CLOCK_DIFFERS_US:
        _log.warning(_CLOCK_IS_BEHIND, seconds=passed_us / 1_000_000)
    elif not resumed.is_exact and passed_us > _DAY_S * 1_000_000:
        _log.warning(_MUCH_TIME_PASSED, seconds=passed_us / 1_000_000)
    elif abs(offset_us) > _CLOCK_DIFFERS_US:
        _log.warning(_CLOCK_DIFFERS, seconds=offset_us / 1_000_000)


async def sweep_contents(spool: SpoolEngine, clock: Clock) -> None:
    """Remove content files without a message, which a crash can leave, until cancelled."""

    async def sweep() -> None:
        if removed := await spool.maintenance.sweep():
            _log.info("stale contents removed", files=removed)

    await _repeat(sweep, clock, interval_s=_DAY_S, fault="stale contents not removed")


async def end_mail_without_node(
    spool: SpoolEngine, end: Callable[[Sequence[Claim]], None], clock: Clock
) -> None:
    """Claim expired mail of stores without a node, and `end` the claims, until cancelled."""

    async def look() -> None:
        while claims := await spool.maintenance.claim_without_node():
            end(claims)
            await clock.sleep(_WITHOUT_NODE_PAUSE_S)  # sleeps: lets others write

    await _repeat(
        look, clock, interval_s=_WITHOUT_NODE_S, fault="mail without a mail root not ended"
    )


async def expire_uploads(remove_expired: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Remove expired upload sessions until cancelled."""
    await _repeat(remove_expired, clock, interval_s=_PRUNE_S, fault="uploads not removed")


async def warn_of_ends(
    keys: Callable[[], KeyRing],
    clients: Callable[[], Iterable[OAuthClient]],
    clock: Clock,
    *,
    expires: Gauge,
) -> None:
    """Once a day (UTC) until cancelled, log each domain whose last signing key has ended or ends
    within 14 days, and each [[oauth]] whose secret has or does within 30; `expires` shows its end.
    """
    logged = set[tuple[str, str, int]]()

    async def warn() -> None:
        nonlocal logged
        now_us = clock.time_us()
        today = now_us // DAY_US
        lines: dict[tuple[str, str, int], tuple[str, dict[str, str]]] = {}
        for key in keys().ending(now_us):
            event = _KEY_ENDS if key.is_usable(now_us) else _KEY_ENDED
            fields = {"domain": key.domain, "selector": key.selector, "until": key.last_day}
            lines[key.domain, key.last_day, today] = event, fields
        expires.clear()
        for name, secret in secret_states(clients()).items():
            if secret.ends_us is not None:
                expires.labels(name).set((secret.ends_us - now_us) / 1_000_000)
            if text := secret.warning(now_us):
                event = f"a {secret.kind} for tokens ends"
                lines[name, "", today] = event, {"oauth": name, "detail": text}
        for line, (event, fields) in lines.items():
            if line not in logged:
                _log.warning(event, **fields)
        logged = set(lines)

    await _repeat(warn, clock, interval_s=_KEYS_S, fault="signing keys and secrets not checked")


_KEYS_S = 600.0
_KEY_ENDS = "the last signing key of a domain ends soon: its mail then goes out unsigned"
_KEY_ENDED = "the last signing key of a domain has ended: its mail goes out unsigned"


# limit: answers and notices in `STATE/dead-letter/`
KEPT_BYTES_MAX = 100_000_000
_HEAD_BYTES = 2000  # local delivery writes its fields at the begin
_FOR_POSTMASTER = b"\nDelivered-To: postmaster\r\n"  # without a domain: only Relay sends to it
_NOTICE = b">\r\nTo: <postmaster@"  # in the header of a notice


def prune_answers(mailbox: Path, *, kept_bytes: int = KEPT_BYTES_MAX) -> int:
    """Remove the oldest mail that strangers caused, until the Maildir has at most `kept_bytes`.
    Return the number of removed messages.
    """
    files: list[tuple[float, int, Path]] = []
    for part in ("new", "cur"):
        with suppress(FileNotFoundError), os.scandir(mailbox / part) as entries:
            for file in entries:
                with suppress(FileNotFoundError):
                    status = file.stat()
                    files.append((status.st_mtime, status.st_size, Path(file.path)))
    excess = sum(size for _, size, _ in files) - kept_bytes
    removed = 0
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        with suppress(FileNotFoundError):
            if _is_of_strangers(path):
                path.unlink()
                excess -= size
                removed += 1
    return removed


def _is_of_strangers(path: Path) -> bool:
    with path.open("rb") as file:
        head = b"\n" + file.read(_HEAD_BYTES)
    return _FOR_POSTMASTER not in head or _NOTICE in head
