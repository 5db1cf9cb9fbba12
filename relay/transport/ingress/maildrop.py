"""Take the mail that `relay sendmail` left in the drop directory while no relay listened.

Each file is accepted as if its owner had sent it, and then removed. The spool keeps a key, so that
after a crash in between the file is not sent again: that with which `relay sendmail` may have sent
it before, else one of device, inode, time and digest. The keys of files are renewed while these are
there. A file that cannot be removed is named by /readyz. Files
that `relay sendmail` did not write, and files that are rejected, are moved into a directory that
only the relay can enter. Directories stay, since only their owners can move them.
"""

import asyncio
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Ids, sleep_in_step
from relay.base.crashpoints import CrashPoint
from relay.base.message.address import parse_odd_mailbox
from relay.base.message.content import BLOCK_BYTES
from relay.base.message.envelope import Envelope, ForwardPath, parse_envid, parse_notify, parse_ret
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.phrases import shown
from relay.base.shares import Shares
from relay.store.spool.types import SpoolUnavailableError
from relay.transport.ingress import dropped_mail
from relay.transport.ingress.data import ContentCollector, DataReply, Origin
from relay.transport.ingress.listener_role import SENDMAIL
from relay.transport.ingress.local_users import LocalUsers
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.ingress.session_owner import IngressDependencies

_log = get_logger("ingress")
ASIDE = "aside"  # the directory of what is moved aside
FILES_MAX = 10_000  # looked at in one round, which reads at most FILE_BYTES_MAX and one file
_LOOK_S = 5.0
_AGAIN_S = 60.0  # after a file that the relay cannot take now
_PART_S = 600.0  # an older file is not being written any more
_LOGGED_MAX = 10  # files moved aside, in one round
_ASIDE_MAX = 1000  # files of an owner that are kept; more are removed


class StuckFile(Struct, frozen=True):
    """A file that cannot be removed."""

    identity: dropped_mail.Identity
    aside: str  # its name in ASIDE; "": it is to be removed
    key: str  # with which it was accepted, or ""
    why: str = ""


@dataclass(eq=False)
class MailDrop:
    """The drop directory of [sendmail]."""

    directory: Path
    users: LocalUsers  # who the owners are
    shared: IngressDependencies  # what accepts the mail
    _: KW_ONLY
    renew: Callable[[Sequence[str]], Awaitable[object]]  # SpoolEngine.renew_submission_keys
    report: Callable[[str], None]  # gets the fault of the directory for /readyz, or ""

    def __post_init__(self) -> None:
        self._clock, self._limits = self.shared.acceptance.clock, SessionLimits()
        self._ids = Ids(self._clock)
        self._budget = Shares("dropped mail", self._limits.buffered_bytes)
        self._stuck: dict[str, StuckFile] = {}  # by name
        self._waited: set[str] = set()  # files that had to wait in the last round
        self._logged = 0  # files moved aside in this round

    async def run(self) -> None:
        """Look for mail until cancelled."""
        fault = RepeatedError()
        while True:
            is_done = False
            try:
                is_done = await self.look()
                fault.clear()
            except Exception as error:  # noqa: BLE001 - the task must go on
                fault.log(_log.warning, "the drop directory cannot be used", error)
                if not isinstance(error, FileNotFoundError):
                    self.report(f"the drop directory cannot be used: {error}")
            # real time: programs of this machine
            await sleep_in_step(_LOOK_S if is_done else _AGAIN_S)

    async def look(self) -> bool:
        """Take the files; return False if some must wait. Raises OSError, SpoolError.

        An OSError of one file is raised after the other files are taken.
        """
        names = await asyncio.to_thread(self._listed)
        there = frozenset(names)
        self._stuck = {name: stuck for name, stuck in self._stuck.items() if name in there}
        # What had to wait is tried after the others.
        names.sort(key=self._waited.__contains__)
        self._waited = set()
        left_bytes, self._logged, is_done = dropped_mail.FILE_BYTES_MAX, 0, True
        pressure, failures = self.shared.pressure, list[OSError]()
        for name in names:
            if left_bytes <= 0 or pressure.paused() or pressure.rejection():
                break
            try:
                identity = dropped_mail.identity_of((self.directory / name).lstat())
                if (stuck := self._stuck.get(name)) and stuck.identity == identity:
                    await self._move(name, stuck)
                    continue
                file = await asyncio.to_thread(dropped_mail.DroppedFile, self.directory / name)
                with closing(file):
                    left_bytes -= file.size
                    if not await self._take(name, file):
                        self._waited.add(name)
                        is_done = False
            except FileNotFoundError:
                continue
            except dropped_mail.HostileFileError as error:
                await self._set_aside(name, identity, str(error))
            except OSError as error:
                error.filename = str(self.directory / name)
                failures = failures or [error]
        self.report("")
        for name, stuck in itertools.islice(self._stuck.items(), 1):
            more = f", and {len(self._stuck) - 1} more" if len(self._stuck) > 1 else ""
            self.report(f"{self.directory}: {shown(name)} cannot be removed: {stuck.why}{more}")
        if failures:
            raise failures.pop()
        return is_done

    async def renew_keys(self) -> None:
        """Renew the keys of the files that are there. Raises SpoolError."""
        try:
            keys = await asyncio.to_thread(self._keys_of_names)
        except OSError as error:
            raise SpoolUnavailableError(f"the drop directory cannot be read: {error}") from error
        keys += [stuck.key for stuck in self._stuck.values()]
        if known := list(filter(None, keys)):
            await self.renew(known)

    def _keys_of_names(self) -> list[str]:
        keys: list[str] = []
        with suppress(FileNotFoundError):
            for name in self._listed():
                with suppress(FileNotFoundError):
                    keys.append(dropped_mail.key_of_name(name, (self.directory / name).lstat()))
        return keys

    def _listed(self) -> list[str]:
        """Return the names of files, the oldest first as `relay sendmail` names them."""
        with suppress(OSError):  # made early: another user could make it
            (self.directory / ASIDE).mkdir(mode=0o700)
        names: list[str] = []
        parts = 0
        with os.scandir(self.directory) as entries:
            for file in entries:
                is_part = file.name.startswith(dropped_mail.PART)
                parts += is_part
                is_young = is_part and (parts > FILES_MAX or self._is_being_written(file))
                if is_young or file.name == ASIDE or file.is_dir(follow_symlinks=False):
                    continue
                names.append(file.name)
                if len(names) == FILES_MAX:
                    break
        return sorted(names)

    def _is_being_written(self, part: "os.DirEntry[str]") -> bool:
        """Whether a file has changed lately. The owner may set a later time of modification."""
        try:
            facts = part.stat(follow_symlinks=False)
        except FileNotFoundError:
            return True
        changed_us = min(facts.st_ctime_ns, facts.st_mtime_ns) // 1000
        return self._clock.file_time_us() - changed_us < _PART_S * 1e6

    async def _take(self, name: str, file: dropped_mail.DroppedFile) -> bool:
        """Accept a file and remove it, or put it aside; return False if it must wait."""
        try:
            reply, key = await self._accept(file)
        except (dropped_mail.HostileFileError, ValueError) as error:
            reply, key = DataReply(str(error)), ""
        if reply.queue_id:
            self.shared.crash.reached(CrashPoint.DROP_ACCEPTED)
            await self._move(name, StuckFile(file.identity, "", key))
        elif reply.reply.startswith("4"):
            _log.repeated("info", "dropped file must wait", file=shown(name), reply=reply.reply)
            return False
        else:
            await self._set_aside(name, file.identity, reply.reply)
        return True

    async def _accept(self, file: dropped_mail.DroppedFile) -> tuple[DataReply, str]:
        """Return the reply to the mail of a file, and its key.

        Raises HostileFileError, SpoolError, and ValueError for the envelope.
        """
        user = await asyncio.to_thread(self.users.find, file.uid)
        acceptance = self.shared.acceptance
        content = ContentCollector(
            size_max_bytes=dropped_mail.FILE_BYTES_MAX,
            limits=self._limits,
            budget=self._budget,
            arrival=acceptance.spool.incoming_body,
        )
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
            own_key = "-".join(("drop", *map(str, file.identity), digest.hexdigest()[:32]))
            key = file.key or own_key
            origin = Origin("", user.name, trusted=True, user=user, key=key, role=SENDMAIL)
            received = content.hand_over()
            try:
                reply = await acceptance.accept(envelope, paths, received.content, origin=origin)
            finally:
                received.release()
        finally:
            content.release()
        return reply, key

    def _envelope(
        self, dropped: dropped_mail.DroppedEnvelope, *, eight_bit: bool
    ) -> tuple[Envelope, list[ForwardPath]]:
        """Return the envelope and its recipients. Raises ValueError."""
        users = self.users
        sender = dropped.sender and parse_odd_mailbox(dropped.sender, users.hostname, smtputf8=True)
        addresses = dict.fromkeys(
            parse_odd_mailbox(address, users.domain, smtputf8=True)
            for address in dropped.recipients
        )
        notify = parse_notify(dropped.notify) if dropped.notify else frozenset()
        return Envelope(
            sender,
            ret=parse_ret(dropped.ret) if dropped.ret else "",
            eight_bit=eight_bit,
            envid=parse_envid(dropped.envid) if dropped.envid else "",
            smtputf8=not "".join((sender, *addresses)).isascii(),
        ), [ForwardPath(address, notify) for address in addresses]

    async def _set_aside(self, name: str, identity: dropped_mail.Identity, why: str) -> None:
        """Move a file to where only the relay can enter."""
        done = await self._move(name, StuckFile(identity, self._ids.new(), ""))
        self._logged += 1
        if done and self._logged <= _LOGGED_MAX:
            more = "; others are not logged" if self._logged == _LOGGED_MAX else ""
            _log.warning(f"dropped file {done}", file=shown(name), reason=why + more)

    async def _move(self, name: str, file: StuckFile) -> str:
        """Remove a file, or move it aside; return what was done, "" if the file stays."""
        try:
            done = await asyncio.to_thread(self._move_now, self.directory / name, file.aside)
        except FileNotFoundError:
            done = ""
        except OSError as error:
            why = error.strerror or str(error)
            if name not in self._stuck:
                _log.error("dropped file not removed", file=shown(name), error=why)
            self._stuck[name] = replace(file, why=why)
            return ""
        self._stuck.pop(name, None)
        return done

    def _move_now(self, path: Path, aside: str) -> str:
        place = self.directory / ASIDE
        if not aside:
            path.unlink()
            return "removed"
        facts = place.lstat()  # it may be a link, or another user's
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o77:
            raise PermissionError(errno.EPERM, f"{place} is not a directory of the relay alone")
        owner = path.lstat().st_uid
        if sum(other.lstat().st_uid == owner for other in place.iterdir()) >= _ASIDE_MAX:
            path.unlink()
            return "removed"
        path.rename(place / aside)
        return "moved aside"
