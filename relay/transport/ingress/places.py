"""The places of a listener's sessions: of strangers, of trusted clients, and of logins.

Strangers share max_sessions places. Trusted clients share twice as many, and so do logins: an
address, user or account that is alone gets max_sessions. A stranger's address has a limit of its
own, also after a login. If there is no place for a session, it gets that of a session which has
had no mail for a minute, of the key that has most; or none, if all of these have less than its own.
"""

import asyncio
from typing import Final, Generic, Protocol, TypeVar

from relay.base.pressure import ConcurrencyCounter
from relay.base.settings.tree import SmtpListener
from relay.base.shares import Shares
from relay.transport.ingress.session_client import LOGINS, STRANGERS, TRUSTED, SessionPlace
from relay.transport.ingress.session_limits import SessionLimits

_BOUNDS: Final = {
    STRANGERS: "SMTP strangers",
    TRUSTED: "SMTP trusted clients",
    LOGINS: "SMTP logins",
}
_AGAIN_S: Final = 1.0  # until a search that found no session is made again
CROWDED: Final = "421 4.4.2 Many clients wait for a session, closing yours"  # RFC 5321 4.5.3.2.7


class PlaceHolder(Protocol):
    """A session."""

    place: SessionPlace | None  # None: it has none any more

    def without_mail_s(self, now_s: float) -> float:
        """Return how long the client has sent no mail, 0.0 while Relay owes it a reply."""

    def close_with(self, reply: str) -> None:
        """Send a last reply and close, in any state."""


SessionT = TypeVar("SessionT", bound=PlaceHolder)


class Places(Generic[SessionT]):
    """The places, and the open sessions."""

    def __init__(self, settings: SmtpListener, limits: SessionLimits) -> None:
        self.sessions = set[SessionT]()
        self.kinds = {kind: Shares(bound, 0) for kind, bound in _BOUNDS.items()}
        self.clients = ConcurrencyCounter()  # sessions, by SessionPlace.clients
        self._without_mail_s = limits.without_mail_s
        self._nobody = dict[str, tuple[float, int]]()  # gives way to who has so many, until then
        self.use(settings)

    def use(self, settings: SmtpListener) -> None:
        """Use the limits of `settings` from now on; no session ends."""
        of_address = settings.max_sessions_per_client
        self._limits = of_address, 4 * of_address  # the latter of an IPv6 network of a site
        for kind, shares in self.kinds.items():
            shares.limit = settings.max_sessions * (1 if kind == STRANGERS else 2)

    def is_full(self, part: float = 1.0) -> bool:
        """Whether this part of the places of strangers is taken."""
        shares = self.kinds[STRANGERS]
        return shares.taken >= part * shares.limit

    def take(self, place: SessionPlace) -> str:
        """Take a place and return "", or return the reply if there is none."""
        for key, limit in zip(place.clients, self._limits, strict=False):
            if self.clients.count(key) >= limit:
                # RFC 5321 7.8
                return "421 4.7.0 Too many sessions from your address, close some and try again"
        if not self._take(place):
            return "421 4.7.0 Too many sessions at once, try again later"  # RFC 5321 7.8
        self.clients.begin(*place.clients)
        return ""

    def of_login(self, place: SessionPlace, login: str) -> SessionPlace | None:
        """Exchange a place for one of an account; an address counts as before. None: there is no
        place.
        """
        new = SessionPlace(LOGINS, login, place.clients[:1])
        if not self._take(new):
            return None
        self.give_back(place)
        self.clients.begin(*new.clients)
        return new

    def give_back(self, place: SessionPlace) -> None:
        """End the use of a place."""
        self.kinds[place.kind].give_back(place.key)
        self.clients.end(*place.clients)

    def _take(self, place: SessionPlace) -> bool:
        shares = self.kinds[place.kind]
        if not shares.has_room(place.key):
            if (other := self._gives_way(place)) is None:
                shares.refuse()
                return False
            assert other.place is not None
            self.give_back(other.place)
            other.place = None
            other.close_with(CROWDED)
        shares.add(place.key)
        return True

    def _gives_way(self, place: SessionPlace) -> SessionT | None:
        """Return the session without mail for longest, of the key that has most."""
        shares = self.kinds[place.kind]
        now_s = asyncio.get_running_loop().time()  # real time: clients
        mine = shares.of(place.key)
        until_s, known = self._nobody.get(place.kind, (0.0, 0))
        if now_s < until_s and mine >= known:
            return None
        most, chosen = (mine, 0.0), None
        for session in self.sessions:
            other = session.place
            if other is None or other.kind != place.kind:
                continue
            silent_s, has = session.without_mail_s(now_s), shares.of(other.key)
            has += other.key == place.key  # it may exchange sessions of its own
            if has > mine and silent_s >= self._without_mail_s and (has, silent_s) > most:
                most, chosen = (has, silent_s), session
        if chosen is None:
            self._nobody[place.kind] = now_s + _AGAIN_S, mine
        return chosen
