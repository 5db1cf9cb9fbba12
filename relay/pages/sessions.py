"""The sessions of logged-in browsers: in memory, bounded, ended by time or by a changed account.

A session is found by the SHA-256 of its identifier, so that no identifier is stored. All sessions
end with the process (OWASP Session Management Cheat Sheet; RFC 6265 8.4). `logins` has the cookie.
"""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from relay.accounts.account import Account, AccountDirectory
from relay.base.clock import Clock

IDLE_S = 30 * 60.0
LIFETIME_S = 12 * 3600.0
SESSIONS_MAX = 2000
SESSIONS_OF_ACCOUNT_MAX = 20
_SECRET_BYTES = 32
_IDENTIFIER_LENGTH_MAX = 64


@dataclass(slots=True)
class Session:
    """One login. `account` is as it was then, `csrf` the token of its forms."""

    account: Account
    csrf: str
    begun_s: float
    used_s: float

    def has_ended(self, now: float) -> bool:
        """Return whether its time is over."""
        return now - self.used_s >= IDLE_S or now - self.begun_s >= LIFETIME_S


class Sessions:
    """The sessions of one process."""

    def __init__(self, accounts: AccountDirectory, clock: Clock) -> None:
        """`clock` has the real time: a clock that is advanced by days would end all logins."""
        self._accounts = accounts
        self._clock = clock
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()  # the last used is the last

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, account: Account) -> str:
        """Begin a session and return its identifier.

        At a limit, the session that was not used for the longest time ends.
        """
        now = self._clock.monotonic()
        self._remove_ended(now)
        own = [key for key, one in self._sessions.items() if one.account.address == account.address]
        for key in own[: max(0, len(own) - SESSIONS_OF_ACCOUNT_MAX + 1)]:
            del self._sessions[key]
        while len(self._sessions) >= SESSIONS_MAX:
            self._sessions.popitem(last=False)
        identifier = new_secret()
        session = Session(account, csrf=new_secret(), begun_s=now, used_s=now)
        self._sessions[_key_of(identifier)] = session
        return identifier

    def find(self, identifier: str, *, is_use: bool = True) -> Session | None:
        """Return the session of an identifier, with its account as it is now; None if it has ended.

        It ends when the account is removed, or gets another role, password or token. Unless
        `is_use`, the session is not prolonged.
        """
        key = _key_of(identifier)
        session = self._sessions.get(key)
        if session is None:
            return None
        now = self._clock.monotonic()
        account = self._accounts.by_address(session.account.address)
        if session.has_ended(now) or account is None or not _is_same(session.account, account):
            del self._sessions[key]
            return None
        session.account = account
        if is_use:
            session.used_s = now
            self._sessions.move_to_end(key)
        return session

    def end(self, identifier: str) -> None:
        """End the session of an identifier, if there is one."""
        self._sessions.pop(_key_of(identifier), None)

    def _remove_ended(self, now: float) -> None:
        ended = [key for key, one in self._sessions.items() if one.has_ended(now)]
        for key in ended:
            del self._sessions[key]


def new_secret() -> str:
    """Return 256 random bits as text for a cookie or a form."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def _key_of(identifier: str) -> bytes:
    """Return the digest of an identifier; longer ones than begin() makes have none of a session."""
    text = identifier[: _IDENTIFIER_LENGTH_MAX + 1]
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _is_same(before: Account, now: Account) -> bool:
    return (before.address, before.role, before.credentials) == (
        now.address, now.role, now.credentials,
    )  # fmt: skip
