"""Take the mail that `relay sendmail` left in the drop directory while no relay listened.

Each file is accepted as if its owner had sent it, with a key of device, inode, time and digest, and
then removed: after a crash between the two the spool knows the key, and the file is not sent again.
A file that cannot be removed is named by /readyz, and its key is renewed while it is there. What is
no such file, or is rejected, is put aside, into a directory that only the relay can enter.
"""

import asyncio
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Ids, sleep_in_step
from relay.base.crashpoints import CrashPoint
from relay.base.pressure import MemoryBudget
from relay.ingress.data import ContentCollector, DataReply, Origin
from relay.ingress.dropped_mail import (
    FILE_BYTES_MAX,
    PART,
    DroppedEnvelope,
    DroppedFile,
    HostileFileError,
    Identity,
    identity_of,
)
from relay.ingress.local_users import LocalUsers
from relay.ingress.session_limits import SessionLimits
from relay.ingress.smtp_commands import IngressDependencies
from relay.message.address import parse_odd_mailbox
from relay.message.content import BLOCK_BYTES
from relay.message.envelope import Envelope, ForwardPath, parse_notify, parse_ret
from relay.observe.logs import RepeatedError, get_logger
from relay.spool.types import SpoolError

_log = get_logger("ingress")
ASIDE = "aside"  # the directory for what is put aside
FILES_MAX = 10_000  # looked at in one round, which reads at most FILE_BYTES_MAX and one file
_LOOK_S = 5.0
_AGAIN_S = 60.0  # after a file that the relay cannot take now
_PART_S = 600.0  # an older file is not being written any more
_RENEW_S = 3600.0
_LOGGED_MAX = 10  # files put aside, in one round
_ASIDE_MAX = 1000  # files that are kept; more are removed


class StuckFile(Struct, frozen=True):
    """A file that cannot be removed."""

    identity: Identity
    aside: str | None  # its name in ASIDE; None: it is to be removed
    key: str  # with which it was accepted, ""
    why: str


@dataclass(eq=False, kw_only=True)
class MailDrop:
    """The drop directory of [sendmail]."""

    directory: Path
    users: LocalUsers  # who the owners are
    shared: IngressDependencies  # what accepts the mail
    renew: Callable[[Sequence[str]], Awaitable[object]]  # SpoolEngine.renew_submission_keys
    report: Callable[[str], None]  # gets what /readyz says of the directory, "" for nothing
    limits: SessionLimits = field(default_factory=SessionLimits)

    def __post_init__(self) -> None:
        self._clock = self.shared.acceptance.clock
        self._ids = Ids(self._clock)
        self._budget = MemoryBudget(self.limits.buffered_bytes)
        self._stuck: dict[str, StuckFile] = {}  # by name
        self._renewed_s = -_RENEW_S
        self._logged = 0  # files put aside in this round

    async def run(self) -> None:
        """Look for mail until cancelled."""
        fault = RepeatedError()
        while True:
            pause_s = _AGAIN_S
            try:
                if await self.look():
                    pause_s = _LOOK_S
                fault.clear()
            except (OSError, SpoolError) as error:
                if fault.is_new(error):
                    _log.warning("the drop directory cannot be read", error=str(error))
                if not isinstance(error, FileNotFoundError | SpoolError):
                    self.report(f"the drop directory cannot be read: {error}")
            except Exception:  # noqa: BLE001 - ours: the task must go on
                _log.exception("the drop directory failed")
            await sleep_in_step(pause_s)  # real time: programs of this machine

    async def look(self) -> bool:
        """Take what is there; return False if some of it must wait. Raises OSError, SpoolError."""
        names = await asyncio.to_thread(self._listed)
        await self._retry_stuck()
        left_bytes, self._logged, is_done = FILE_BYTES_MAX, 0, True
        for name in names:
            pressure = self.shared.pressure
            if left_bytes <= 0 or pressure.paused() or pressure.rejection():
                break
            if name in self._stuck:
                continue
            try:
                file = await asyncio.to_thread(DroppedFile, self.directory / name)
            except FileNotFoundError:
                continue
            except HostileFileError as error:
                await self._put_aside(name, str(error))
                continue
            with closing(file):
                left_bytes -= file.size
                is_done &= await self._take(name, file)
        if self._logged > _LOGGED_MAX:
            _log.warning("more files were put aside", files=self._logged - _LOGGED_MAX)
        stuck = next(iter(self._stuck.items()), None)
        more = f", and {len(self._stuck) - 1} more" if len(self._stuck) > 1 else ""
        self.report(
            f"{self.directory / stuck[0]} cannot be removed: {stuck[1].why}{more}" if stuck else ""
        )
        return is_done

    def _listed(self) -> list[str]:
        """Return the names of files, the oldest first as `relay sendmail` names them."""
        before_s = self._clock.file_time_us() / 1e6 - _PART_S
        with os.scandir(self.directory) as entries:
            some = [one for one in itertools.islice(entries, FILES_MAX + 1) if one.name != ASIDE]
        return sorted(
            one.name
            for one in some
            if not one.name.startswith(PART) or one.stat(follow_symlinks=False).st_mtime < before_s
        )

    async def _take(self, name: str, file: DroppedFile) -> bool:
        """Accept a file and remove it, or put it aside; return False if it must wait."""
        try:
            reply, key = await self._accept(file)
        except (HostileFileError, ValueError) as error:
            await self._put_aside(name, str(error))
            return True
        if reply.queue_id:
            self.shared.crash.reached(CrashPoint.DROP_ACCEPTED)
            await self._move(name, None, file.identity, key=key)
        elif reply.reply.startswith("4"):
            _log.info("mail in the drop directory must wait", file=name, reply=reply.reply)
            return False
        else:
            await self._put_aside(name, reply.reply)
        return True

    async def _accept(self, file: DroppedFile) -> tuple[DataReply, str]:
        """Return the reply to the mail of a file, and its key.

        Raises HostileFileError, SpoolError, and ValueError for the envelope.
        """
        user = await asyncio.to_thread(self.users.find, file.uid)
        acceptance = self.shared.acceptance
        content = ContentCollector(
            size_max_bytes=FILE_BYTES_MAX, limits=self.limits, budget=self._budget,
            arrival=acceptance.spool.incoming_body,
        )  # fmt: skip
        try:
            digest, octets, eight_bit = hashlib.sha256(file.line), file.line, False
            while octets:
                octets = await asyncio.to_thread(file.read, BLOCK_BYTES)
                digest.update(octets)
                eight_bit |= not octets.isascii()
                content.add(octets, is_last=not octets)
                if content.needs_spill:
                    await content.spill(asyncio.to_thread)
            if content.rejection is not None:
                return DataReply(content.rejection), ""
            envelope, paths = self._envelope(file.envelope, eight_bit=eight_bit)
            key = "-".join(("drop", *map(str, file.identity), digest.hexdigest()[:32]))
            origin = Origin("", user.name, trusted=True, user=user, key=key)
            received = content.hand_over()
            try:
                reply = await acceptance.accept(envelope, paths, received.content, origin=origin)
            finally:
                received.release()
        finally:
            content.release()
        return reply, key

    def _envelope(
        self, given: DroppedEnvelope, *, eight_bit: bool
    ) -> tuple[Envelope, list[ForwardPath]]:
        """Return the envelope and its recipients. Raises ValueError."""
        users = self.users
        sender = given.sender and parse_odd_mailbox(given.sender, users.hostname, smtputf8=True)
        addresses = dict.fromkeys(
            parse_odd_mailbox(one, users.domain, smtputf8=True) for one in given.recipients
        )
        notify = parse_notify(given.notify) if given.notify else frozenset()
        return Envelope(
            sender, ret=parse_ret(given.ret) if given.ret else "", eight_bit=eight_bit,
            smtputf8=not "".join((sender, *addresses)).isascii(),
        ), [ForwardPath(one, notify) for one in addresses]  # fmt: skip

    async def _put_aside(self, name: str, why: str) -> None:
        """Move a file to where only the relay can enter."""
        self._logged += 1
        if self._logged <= _LOGGED_MAX:
            _log.warning("a file of the drop directory was put aside", file=name, reason=why)
        try:
            facts = (self.directory / name).lstat()
        except FileNotFoundError:
            return
        await self._move(name, self._ids.new(), identity_of(facts))

    async def _move(
        self, name: str, aside: str | None, identity: Identity, *, key: str = ""
    ) -> None:
        """Remove a file, or move it to this name in ASIDE. One that stays is stuck."""
        try:
            await asyncio.to_thread(self._move_now, name, aside)
        except FileNotFoundError:
            pass
        except OSError as error:
            why = error.strerror or str(error)
            if name not in self._stuck:
                _log.error("a file of the drop directory cannot be removed", file=name, error=why)
            self._stuck[name] = StuckFile(identity, aside, key, why)
            return
        self._stuck.pop(name, None)

    def _move_now(self, name: str, aside: str | None) -> None:
        path, place = self.directory / name, self.directory / ASIDE
        if aside is None:
            path.unlink()
            return
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        facts = place.lstat()  # it may be a link, or another user's
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o77:
            raise PermissionError(errno.EPERM, f"{place} is not a directory of the relay alone")
        if sum(1 for _ in place.iterdir()) >= _ASIDE_MAX:
            path.unlink()
        else:
            path.rename(place / aside)

    async def _retry_stuck(self) -> None:
        """Try again to remove what could not be removed; forget what is gone. Raises SpoolError."""
        for name, stuck in tuple(self._stuck.items()):
            try:
                identity = identity_of((self.directory / name).lstat())
            except FileNotFoundError:
                identity = None
            if identity != stuck.identity:
                del self._stuck[name]
            else:
                await self._move(name, stuck.aside, identity, key=stuck.key)
        keys = [one.key for one in self._stuck.values() if one.key]
        if keys and self._clock.real_s() - self._renewed_s >= _RENEW_S:
            await self.renew(keys)
            self._renewed_s = self._clock.real_s()
