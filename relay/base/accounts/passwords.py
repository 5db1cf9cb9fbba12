"""Check passwords, read tokens, and delay clients that guess.

Passwords are compared in two threads. Passwords of Dovecot are compared by Dovecot, over its socket
for auth clients (version 1 of
https://doc.dovecot.org/2.3/developer_manual/design/auth_protocol/), with one connection for each
check; a failure that Dovecot reports as temporary is not a wrong password. `check_queue` decides
which check is next. Failures are counted by user and client address, and by client address over all
users: failures at one address do not lock out a user at another address, and one device with an old
password does not lock out the other devices of its address (NAT). All tables and queues are
bounded. A success is remembered for a minute, as a keyed digest only; its client is remembered as
long as the process runs. LoginDelayedError means that the password was not checked (454 4.7.0, RFC
4954 4 and 6).
"""

import asyncio
import functools
import hashlib
import hmac
import secrets
from base64 import b64encode
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from msgspec import Struct

from relay.base.accounts.account import LoginDelayedError
from relay.base.accounts.check_queue import BUSY_S, CheckQueue
from relay.base.accounts.password_schemes import Password
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import own_mailbox
from relay.base.observe.logs import get_logger
from relay.base.pressure import ConcurrencyCounter
from relay.base.socket_address import client_of

_ANSWER_S = 30.0  # of which 2 s are Dovecot's own pause after a wrong password
_LINES_MAX = 100
_LINE_BYTES_MAX = 8192
_log = get_logger("accounts")
_PLAIN = "plain:"
_DIGEST = "sha256:"
_DIGEST_BYTES = 32


class DovecotPassword(Struct, frozen=True):
    """The password that Dovecot has for a user."""

    path: str  # of the socket
    user: str  # an address, as the client wrote it
    client: str  # its IP address; "": none
    hashed: str = ""  # not known here

    async def matches(self, password: str) -> bool:
        """Whether `password` is the password. Raises OSError if Dovecot does not answer."""
        if "\0" in password:  # which separates the parts of PLAIN: RFC 4616 2
            return False
        try:
            async with asyncio.timeout(_ANSWER_S):  # real time: a peer
                return await self._ask(password.encode("utf-8", "surrogatepass"))
        except TimeoutError:
            raise OSError(f"{self.path}: no answer of Dovecot in {_ANSWER_S:g} s") from None
        except (OSError, ValueError) as error:  # ValueError: a line without an end, no UTF-8
            reason = getattr(error, "strerror", "") or error
            raise OSError(f"{self.path}: {reason}") from None

    async def _ask(self, password: bytes) -> bool:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=_LINE_BYTES_MAX)
        try:
            # a process number that no other open connection uses
            writer.write(f"VERSION\t1\t1\nCPID\t{1 + secrets.randbelow(2**31 - 1)}\n".encode())
            lines = _lines(reader)
            offers_plain = False
            async for name, *values in lines:
                if name == "VERSION" and values[:1] != ["1"]:
                    raise OSError(f"found version {values[:1]} of the protocol, expected 1")
                offers_plain = offers_plain or [name, *values[:1]] == ["MECH", "PLAIN"]
                if name == "DONE":
                    break
            else:
                raise OSError("Dovecot closed the connection at once")
            if not offers_plain:
                raise OSError("Dovecot does not offer PLAIN, expected it in auth_mechanisms")
            response = b64encode(b"\0".join((b"", self.user.encode(), password))).decode()
            client = f"rip={self.client.partition('%')[0]}\t" if self.client else ""
            # no-penalty: Relay delays guesses itself, without delaying others at the same address
            options = f"service=smtp\tsecured\tnologin\tno-penalty\t{client}resp={response}"
            writer.write(f"AUTH\t1\tPLAIN\t{options}\n".encode())
            async for name, *values in lines:
                if name == "OK":
                    return self._is_user(dict(pair.partition("=")[::2] for pair in values))
                if name == "FAIL":
                    if {"temp", "code=temp_fail"} & set(values):
                        raise OSError("Dovecot has a temporary failure, see its log")
                    return False
            raise OSError("Dovecot closed the connection without an answer")
        finally:
            writer.close()

    def _is_user(self, fields: dict[str, str]) -> bool:
        """Whether Dovecot's name of the user is the address of the login.

        This address is the only one from which the user may send.
        """
        name = fields.get("user", "")
        if own_mailbox(name) == own_mailbox(self.user):
            return True
        _log.repeated(
            "warning", "login of another name in Dovecot", user=self.user, dovecot_user=name[:320]
        )
        return False


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[list[str]]:
    """Yield the fields of each line. Raises OSError and ValueError."""
    for _ in range(_LINES_MAX):
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return
        yield line.decode().removesuffix("\n").split("\t")
    raise OSError(f"found more than {_LINES_MAX} lines, expected an answer of Dovecot")


def parse_token(text: str) -> bytes:
    """Return the SHA-256 of a token stored as `sha256:HEX` or `plain:...`. Raises ValueError."""
    if text.startswith(_PLAIN) and len(text) > len(_PLAIN):
        return digest_of(text.removeprefix(_PLAIN))
    if text.startswith(_DIGEST):
        try:
            digest = bytes.fromhex(text.removeprefix(_DIGEST))
        except ValueError:
            digest = b""
        if len(digest) == _DIGEST_BYTES:
            return digest
        raise ValueError("sha256: and 64 hexadecimal digits")
    raise ValueError("sha256:HEX or plain:...")


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


# limit: passwords checked at once
THREADS = 2  # each check takes 64 MiB and a tenth of a second by default
# limit: passwords asked of Dovecot at once
QUESTIONS_MAX = 32
_REMEMBERED_S = 60.0
CLIENTS_MAX = 50  # of one user, from which it has logged in
ENTRIES_MAX = 10_000
_PASSWORD_BYTES_MAX = 1024
FREE_FAILURES = 3  # of one user from one address
FREE_FAILURES_OF_CLIENT = 10  # of all users from one address
_BACK_OFF_FIRST_S = 1.0
_BACK_OFF_MAX_S = 60.0
FORGOTTEN_S = 900.0  # guessing with only the free failures is then slower than with delays

_SHARED_BY_USERS = frozenset(("", "127.0.0.1", "::1"))

_Pair = tuple[str, str]


@dataclass(slots=True)
class _Failures:
    """Consecutive failures: their number, the last one, and when the next check is allowed."""

    count: int = 0
    last_s: float = 0.0
    until_s: float = 0.0

    def add(self, free: int, now: float) -> None:
        """Count one failure; from `free` on, the delay doubles."""
        self.count += 1
        self.last_s = now
        if self.count >= free:
            doubled = _BACK_OFF_FIRST_S * 2.0 ** min(self.count - free, 10)
            self.until_s = now + min(doubled, _BACK_OFF_MAX_S)


class FailureTable:
    """Failures by key, at most `entries_max`, ordered by the last failure.

    A key with a delay is never evicted: while the oldest key has a delay, further keys are counted
    together as one key. A flood of keys therefore resets no count. Evicting a key without a delay
    takes `entries_max` failures, more than that key could make with delays.
    """

    def __init__(self, free: int, *, entries_max: int = ENTRIES_MAX) -> None:
        """The failure number `free` is the first one that causes a delay."""
        self._free = free
        self._entries_max = entries_max
        self._entries: OrderedDict[str | _Pair, _Failures] = OrderedDict()
        self._others = _Failures()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str | _Pair]:
        """Yield the keys; the table may change meanwhile."""
        return iter(tuple(self._entries))

    def wait_s(self, key: str | _Pair, now: float) -> float:
        """Return the remaining delay of a key, 0 if none."""
        return max(0.0, self._entries.get(key, self._others).until_s - now)

    def count(self, key: str | _Pair, now: float) -> int:
        """Return the number of failures of a key."""
        failures = self._entries.get(key, self._others)
        return failures.count if now - failures.last_s < FORGOTTEN_S else 0

    def add(self, key: str | _Pair, now: float) -> int:
        """Count a failure of a key; return the number of its failures."""
        self._forget(now)
        failures = self._entries.get(key)
        if failures is None:
            failures = self._new_entry(key, now)
        elif failures is not self._others:
            self._entries.move_to_end(key)
        failures.add(self._free, now)
        return failures.count

    def remove(self, key: str | _Pair) -> None:
        """Forget the failures of a key."""
        self._entries.pop(key, None)

    def _forget(self, now: float) -> None:
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if now - oldest.last_s < FORGOTTEN_S:
                break
            del self._entries[key]
        if now - self._others.last_s >= FORGOTTEN_S:
            self._others = _Failures()

    def _new_entry(self, key: str | _Pair, now: float) -> _Failures:
        if len(self._entries) >= self._entries_max:
            oldest = next(iter(self._entries))
            if self._entries[oldest].until_s > now:
                return self._others
            del self._entries[oldest]
        return self._entries.setdefault(key, _Failures())


class GuessDelays:
    """Delays clients that guess a secret which all users share, by client address.

    Repeating one of the last wrong secrets is no guess: a program may have an old secret.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = FailureTable(FREE_FAILURES_OF_CLIENT)
        self._last_given = BoundedDict[str, deque[bytes]](ENTRIES_MAX)

    def raise_if_delayed(self, client: str) -> None:
        """Raise LoginDelayedError if the secret of a client address must not be checked now."""
        if wait_s := self._failures.wait_s(client_of(client), self._clock.monotonic()):
            raise LoginDelayedError("Too many wrong tokens", wait_s)

    def add(self, client: str, password: str) -> None:
        """Count a wrong secret, except on a Unix socket, whose clients share one key."""
        key, digest = client_of(client), digest_of(password)
        if not key:
            return
        last: deque[bytes] = deque(maxlen=FREE_FAILURES_OF_CLIENT)
        last = self._last_given[key] = self._last_given.get(key, last)
        if digest in last:
            last.remove(digest)  # it becomes the latest
        else:
            self._failures.add(key, self._clock.monotonic())
        last.append(digest)

    def remove(self, client: str) -> None:
        """Forget the wrong secrets of a client that has the right one."""
        self._failures.remove(client_of(client))


class SuccessTable:
    """The last success of each user at each client: a digest, and until when it is remembered.

    It has the last CLIENTS_MAX clients of each of the last ENTRIES_MAX users: a user cannot evict
    clients of other users.
    """

    def __init__(self) -> None:
        self._by_user = BoundedDict[str, BoundedDict[str, tuple[bytes, float]]](ENTRIES_MAX)

    def __contains__(self, pair: _Pair) -> bool:
        user, client = pair
        return client in self._by_user.get(user, ())

    def get(self, pair: _Pair) -> tuple[bytes, float]:
        """Return the digest of the password, and until when it is remembered."""
        user, client = pair
        return self._by_user[user][client] if pair in self else (b"", 0.0)

    def add(self, pair: _Pair, digest: bytes, until_s: float) -> None:
        """Record a success."""
        user, client = pair
        clients = self._by_user[user] = self._by_user.get(user, BoundedDict(CLIENTS_MAX))
        clients[client] = (digest, until_s)


class PasswordChecker:
    """Checks passwords, and delays clients that guess."""

    def __init__(
        self,
        clock: Clock,
        *,
        rng: Callable[[int], bytes],
        on_delay: Callable[[str, str], None] = lambda _user, _client: None,
        successes: SuccessTable | None = None,
    ) -> None:
        """`rng` makes the key of the remembered digests; the key is used until the process ends.

        `on_delay` is called with a user and the key of a client when delays begin. `successes` are
        those of an earlier checker; only their clients are used, not their passwords.
        """
        self._clock = clock
        self._on_delay = on_delay
        self._key = rng(32)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="password")
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._running_of = ConcurrencyCounter()  # by pair and by client, including waiting checks
        self._queue = CheckQueue(clock, places=THREADS)
        self._queue_of_dovecot = CheckQueue(clock, places=QUESTIONS_MAX)  # which may hang
        self.successes = successes or SuccessTable()
        self._of_pairs = FailureTable(FREE_FAILURES)
        self._of_clients = FailureTable(FREE_FAILURES_OF_CLIENT)

    async def check(
        self, user: str, stored: Password | DovecotPassword, password: str, *, client: str
    ) -> bool:
        """Whether `password` is the password of `user`, whose stored form is `stored`.

        `client` is the client's address. LoginDelayedError is raised after three failures of a user
        from one address, or ten of any users from it; the delay doubles with each, up to a minute.
        """
        if len(password.encode("utf-8", "surrogatepass")) > _PASSWORD_BYTES_MAX:
            return False
        now = self._clock.monotonic()
        pair = (user, client_of(client))
        # A remembered password is delayed too; otherwise it could be guessed without a limit.
        self._raise_if_delayed(self._of_pairs, pair, now)
        digest = self._digest(pair, stored, password)
        if self._is_remembered(pair, digest, now):
            return True
        running = self._running.get(digest)  # concurrent sessions share one check
        if running is None:
            running = self._begin(pair, digest, stored, password=password)
        await asyncio.wait({running})  # does not cancel it if this client disconnects
        if running.cancelled():  # the accounts were reloaded meanwhile
            raise LoginDelayedError("The login could not be checked", BUSY_S)
        error = running.exception()
        if error and not isinstance(error, LoginDelayedError):
            raise LoginDelayedError("The login could not be checked", BUSY_S) from error
        return running.result()

    def unlock(self, user: str) -> int:
        """Forget the failures of a user and of the clients that caused them.

        Return the number of clients from which the user was delayed.
        """
        now = self._clock.monotonic()
        delayed = 0
        for pair in self._of_pairs:
            if pair[0] == user:
                delayed += self._of_pairs.count(pair, now) >= FREE_FAILURES
                self._of_pairs.remove(pair)
                self._of_clients.remove(pair[1])
        return delayed

    def close(self) -> None:
        """Stop the threads; waiting checks are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, pair: _Pair, digest: bytes, stored: Password | DovecotPassword, *, password: str
    ) -> "asyncio.Future[bool]":
        """Start a check. Raises LoginDelayedError."""
        now, client = self._clock.monotonic(), pair[1]
        # A running check counts as a failure, so that parallel guesses do not avoid the delay.
        guesses = self._running_of.count(pair)
        if guesses and self._of_pairs.count(pair, now) + guesses >= FREE_FAILURES:
            raise LoginDelayedError("Too many logins of this user at once", BUSY_S)
        self._delay_by_client(pair, now, running=self._running_of.count(client))
        running = asyncio.get_running_loop().create_task(self._check(pair, stored, password))
        self._running[digest] = running
        keys = (pair, client)
        for key in keys:
            self._running_of.begin(key)
        running.add_done_callback(functools.partial(self._finished, keys, digest))
        return running

    async def _check(self, pair: _Pair, stored: Password | DovecotPassword, password: str) -> bool:
        """Compare a password when its turn comes. Raises LoginDelayedError, errors of the check."""
        user, client = pair
        is_client = _counts_all_users(client)
        is_of_dovecot = isinstance(stored, DovecotPassword)
        queue = self._queue_of_dovecot if is_of_dovecot else self._queue
        return await queue.run(
            user,
            client if is_client else "",
            functools.partial(self._matches, pair, stored, password),
            is_known=is_client and pair in self.successes,
        )

    async def _matches(
        self, pair: _Pair, stored: Password | DovecotPassword, password: str
    ) -> bool:
        self._delay_by_client(pair, self._clock.monotonic())  # others may have failed meanwhile
        if isinstance(stored, DovecotPassword):
            return await stored.matches(password)
        loop = asyncio.get_running_loop()
        try:
            comparing = loop.run_in_executor(self._threads, stored.matches, password)
        except RuntimeError:  # the accounts were reloaded meanwhile
            raise LoginDelayedError("The login could not be checked", BUSY_S) from None
        return await comparing

    def _delay_by_client(self, pair: _Pair, now: float, *, running: int = 0) -> None:
        """Raise LoginDelayedError after failures of other users at this client address.

        `running` checks of the address have begun and count as failures. A user who has logged in
        from this address before is not delayed.
        """
        client = pair[1]
        if _counts_all_users(client) and pair not in self.successes:
            self._raise_if_delayed(self._of_clients, client, now)
            if running and self._of_clients.count(client, now) >= FREE_FAILURES_OF_CLIENT:
                raise LoginDelayedError("Too many logins from your address at once", BUSY_S)

    def _raise_if_delayed(self, table: FailureTable, key: str | _Pair, now: float) -> None:
        if wait_s := table.wait_s(key, now):
            raise LoginDelayedError("Too many failed logins", wait_s)

    def _digest(self, pair: _Pair, stored: Password | DovecotPassword, password: str) -> bytes:
        parts = (*pair, stored.hashed, password)
        text = b"".join(
            len(part).to_bytes(4, "big") + part
            for part in (text.encode("utf-8", "surrogatepass") for text in parts)
        )
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()

    def _is_remembered(self, pair: _Pair, digest: bytes, now: float) -> bool:
        remembered, until_s = self.successes.get(pair)
        return now < until_s and hmac.compare_digest(remembered, digest)

    def _finished(
        self, keys: tuple[_Pair, str], digest: bytes, check: "asyncio.Future[bool]"
    ) -> None:
        """Record the result of a check, even if its client has disconnected."""
        del self._running[digest]
        for key in keys:
            self._running_of.end(key)
        pair = keys[0]
        if check.cancelled() or check.exception():
            return
        now = self._clock.monotonic()
        if check.result():
            self._succeeded(pair, digest, now + _REMEMBERED_S)
        else:
            self._failed(pair, now)

    def _succeeded(self, pair: _Pair, digest: bytes, until_s: float) -> None:
        self._of_pairs.remove(pair)
        self.successes.add(pair, digest, until_s)

    def _failed(self, pair: _Pair, now: float) -> None:
        failures = self._of_pairs.add(pair, now)
        if failures == FREE_FAILURES:
            self._on_delay(*pair)
        # Further failures are delayed by user and address only. If they counted for the client too,
        # one device with an old password would lock out all users at its address.
        if failures <= FREE_FAILURES and _counts_all_users(pair[1]):
            self._of_clients.add(pair[1], now)


def _counts_all_users(client: str) -> bool:
    """Whether failures of a client are also counted over all users.

    Not on a Unix socket or loopback: all users of a local proxy share that address, and a stranger
    who guesses would lock out all of them.
    """
    return client not in _SHARED_BY_USERS
