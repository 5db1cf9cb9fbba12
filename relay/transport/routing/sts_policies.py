"""The MTA-STS policies of domains: when they are fetched, and how long they hold (RFC 8461 3.3).

A policy holds until its max_age, also after a restart, and whatever becomes of the TXT record and
the web server. It is fetched again when the id in the record changes, and once a day. Only the
first lookup of a domain with a record and without a policy waits for the fetch. What failed is not
tried again for FAILED_S. A policy is a file in `directory`; a damaged file counts as none.
"""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.files import replace_file
from relay.base.message import mta_sts
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.outcome import INTERNAL_ERROR
from relay.base.observe.logs import get_logger
from relay.base.task_set import end_all
from relay.transport.routing.mx_hosts import Answer, Hosts, NoAnswer, Records, Resolution
from relay.transport.routing.resolver import LoopbackResolver, Resolver

FETCH_S = 60.0  # RFC 8461 3.3; the first message waits no longer
FAILED_S = 300.0
CHECK_S = 86_400.0
POLICIES_MAX = 10_000
IN_MEMORY_MAX = 500  # of at most 40 KB; others are read from their files
_FETCHES_MAX = 256  # at once
_CHECKS_MAX = 4  # of the daily check at once
_FAILURES_MAX = 10_000
_TEXT_MAX = 200
_log = get_logger("routing")


class StsFetchError(Exception):
    """There is no policy file; `result` is the result type of RFC 8460 4.3."""

    def __init__(self, text: str, result: str = "sts-policy-fetch-error") -> None:
        super().__init__(text)
        self.result = result


class KeptPolicy(Struct, frozen=True, forbid_unknown_fields=True):
    """A policy as its file has it."""

    domain: str
    id: str  # of the TXT record
    policy: mta_sts.StsPolicy
    fetched_us: int  # queue time

    @property
    def ends_us(self) -> int:
        """Until when the policy holds (queue time)."""
        return self.fetched_us + self.policy.max_age_s * 1_000_000


_decoder = msgspec.json.Decoder(KeptPolicy)  # made before threads use it


@dataclass(eq=False)
class StsPolicies:
    """The policies of all domains, at most POLICIES_MAX: the least recently used one goes."""

    directory: Path  # of their files
    clock: Clock
    _: KW_ONLY
    resolver: Resolver | LoopbackResolver  # of MX hosts
    texts: Callable[[str], Awaitable[Answer]]  # the TXT records of a name
    fetch: Callable[[str], Awaitable[bytes]]  # the policy file of a domain; raises StsFetchError
    count: Callable[[str], None]  # a result type of RFC 8460 for each fetch

    def __post_init__(self) -> None:
        # the domains that have a file, the most recently used one is the last
        self._kept = BoundedDict[str, None](POLICIES_MAX + _FETCHES_MAX)
        self._in_memory = BoundedDict[str, KeptPolicy](IN_MEMORY_MAX)
        # when (monotonic clock), and why
        self._failed = BoundedDict[str, tuple[float, str]](_FAILURES_MAX)
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_FETCHES_MAX)

    def open(self) -> None:
        """Find the files."""
        try:
            with os.scandir(self.directory) as directory:
                files = sorted((file.stat().st_mtime, file.name) for file in directory)
        except FileNotFoundError:  # nothing was kept yet
            return
        except OSError as error:
            _log.warning("MTA-STS policies not read", error=str(error))
            return
        self._kept.update((name, None) for _, name in files if not name.startswith("."))

    async def close(self) -> None:
        """End the fetches."""
        await end_all(self._fetches.values())

    async def forget(self) -> None:
        """Forget all policies, also those in files, and what failed."""
        await self.close()
        self._kept.clear()
        self._failed.clear()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def resolve(self, next_hop: NextHop) -> Resolution:
        """Return the hosts of a next hop as the resolver does. The MX hosts of a domain come with
        what is known of its policy, which is looked up at the same time.
        """
        if next_hop.kind is not HopKind.MX or not mta_sts.may_publish(next_hop.host):
            return await self.resolver.resolve(next_hop)
        hosts, sts = await asyncio.gather(self.resolver.resolve(next_hop), self.find(next_hop.host))
        if not isinstance(hosts, Hosts):
            return hosts
        if (fetch := sts.fetch) is None:
            return replace(hosts, sts=self._counted(hosts, sts))

        async def fetched() -> mta_sts.StsFinding:
            return self._counted(hosts, await fetch())

        return replace(hosts, sts=replace(sts, fetch=fetched))

    def _counted(self, lookup: Hosts, sts: mta_sts.StsFinding) -> mta_sts.StsFinding:
        """Count the hosts that the policy does not list."""
        if sts.policy is not None and sts.policy.mode != "none":
            for host in lookup.hosts:
                if not sts.policy.lists(host.name):
                    self.count("validation-failure")  # RFC 8460 4.3.3
        return sts

    async def find(self, domain: str) -> mta_sts.StsFinding:
        """Return what is known of a domain's policy; this asks for its TXT record only. If the
        record has another id than the policy that is kept, a fetch begins.
        """
        record, kept = await self._record_of(domain), await self._kept_policy(domain)
        if kept is not None:
            if record not in ("", kept.id):
                self._begin(domain, record)
            return mta_sts.StsFinding(kept.policy)
        if not record:
            why = self._failure(f"_mta-sts.{domain}")
            return mta_sts.StsFinding(unasked=why) if why else mta_sts.NO_STS
        if why := self._failure(domain):
            return mta_sts.StsFinding(trouble=why)
        return mta_sts.StsFinding(fetch=partial(self._fetched, domain, record))

    async def check(self) -> None:
        """Fetch the policies again that were not fetched for CHECK_S, if their domains have a
        record.
        """
        domains = iter(list(self._kept))
        before_us = self.clock.queue_us() - int(CHECK_S * 1_000_000)

        async def work() -> None:
            for domain in domains:
                kept = await self._kept_policy(domain)
                if kept is None or kept.fetched_us > before_us:
                    continue
                if record := await self._record_of(domain):
                    await asyncio.wait((self._begin(domain, record),))

        await asyncio.gather(*(work() for _ in range(_CHECKS_MAX)))

    async def _record_of(self, domain: str) -> str:
        """Return the id of a domain's TXT record, "" without one; no answer is no record."""
        name = f"_mta-sts.{domain}"
        if self._failure(name):
            return ""
        answer = await self.texts(name)
        if isinstance(answer, NoAnswer):
            self._note_failure(name, answer.text)
        return mta_sts.read_record(answer.values) if isinstance(answer, Records) else ""

    async def _fetched(self, domain: str, record: str) -> mta_sts.StsFinding:
        """Wait until a policy is fetched, or cannot be."""
        await asyncio.wait((self._begin(domain, record),))
        kept = await self._kept_policy(domain)
        if kept is not None:
            return mta_sts.StsFinding(policy=kept.policy)
        return mta_sts.StsFinding(trouble=self._failure(domain))

    def _begin(self, domain: str, record: str) -> asyncio.Task[None]:
        """Begin to fetch a policy, unless that runs or has just failed."""
        fetch = self._fetches.get(domain)
        if fetch is None:
            fetch = asyncio.get_running_loop().create_task(self._fetch(domain, record))
            self._fetches[domain] = fetch
            fetch.add_done_callback(lambda _: self._fetches.pop(domain))
        return fetch

    async def _fetch(self, domain: str, record: str) -> None:
        if self._failure(domain):
            return
        try:
            policy = mta_sts.read_policy(await self._file_of(domain))
        except (StsFetchError, mta_sts.StsPolicyError) as error:
            self.count(
                "sts-policy-invalid" if isinstance(error, mta_sts.StsPolicyError) else error.result
            )
            why = str(error)[:_TEXT_MAX]  # a server may have said it
            _log.warning("MTA-STS policy not fetched", domain=domain, error=why)
            self._note_failure(domain, why)
            return
        except Exception:  # noqa: BLE001 - mail goes as without a policy
            _log.exception("internal error in an MTA-STS fetch", domain=domain)
            self._note_failure(domain, INTERNAL_ERROR)
            return
        kept = KeptPolicy(domain, record, policy, self.clock.queue_us())
        self._kept[domain], self._in_memory[domain] = None, kept
        try:
            await asyncio.to_thread(self._write, kept)
        except OSError as error:  # it holds while it is in memory
            _log.warning("MTA-STS policy not kept", domain=domain, error=str(error))
        while len(self._kept) > POLICIES_MAX:
            await self._forget(next(iter(self._kept)))

    async def _file_of(self, domain: str) -> bytes:
        """Fetch a policy file; the wait for a place counts. Raises StsFetchError."""
        try:
            async with asyncio.timeout(FETCH_S), self._slots:  # real time: a peer
                return await self.fetch(domain)
        except TimeoutError:
            raise StsFetchError(f"not fetched within {FETCH_S:g} s") from None

    async def _kept_policy(self, domain: str) -> KeptPolicy | None:
        """Return the policy of a domain that has not ended."""
        if domain not in self._kept:  # nearly always
            return None
        kept = self._in_memory.get(domain)
        if kept is None:
            read = await asyncio.to_thread(self._read, domain)
            kept = self._in_memory.get(domain) or read  # it may have been fetched
        if kept is None:
            self._kept.pop(domain, None)
            return None
        self._kept[domain], self._in_memory[domain] = None, kept
        return kept if self.clock.queue_us() < kept.ends_us else None

    def _write(self, kept: KeptPolicy) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        replace_file(self.directory / kept.domain, msgspec.json.encode(kept), mode=0o600)

    def _read(self, domain: str) -> KeptPolicy | None:
        file = self.directory / domain
        try:
            kept = _decoder.decode(file.read_bytes())
        except (OSError, ValueError) as error:
            _log.warning("MTA-STS policy not read", domain=domain, error=str(error))
            return None
        # a clock that was ahead does not make a policy last longer
        return replace(kept, fetched_us=min(kept.fetched_us, self.clock.queue_us()))

    async def _forget(self, domain: str) -> None:
        self._kept.pop(domain, None)
        try:
            await asyncio.to_thread((self.directory / domain).unlink, missing_ok=True)
        except OSError as error:
            _log.warning("MTA-STS policy not removed", domain=domain, error=str(error))

    def _failure(self, name: str) -> str:
        """Return why a fetch, or a look-up, failed within FAILED_S; else ""."""
        at_s, why = self._failed.get(name, (-FAILED_S, ""))
        return why if self.clock.monotonic() < at_s + FAILED_S else ""

    def _note_failure(self, name: str, why: str) -> None:
        self._failed[name] = (self.clock.monotonic(), why)
