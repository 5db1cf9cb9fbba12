"""What a client does in one session, against the limits of [[smtp]].

Only errors count for clients that are trusted. The limit of messages in a time is that of an
address, of all sessions of the listener; a message counts from MAIL on until it is rejected or
given up. The sessions of an address are counted in relay/ingress/smtp_session.py.
"""

from relay.base.socket_address import client_of
from relay.ingress.message_limits import RateLimits, Reservation
from relay.ingress.session_limits import SessionLimits
from relay.message.verdict import RateCharge
from relay.settings.tree import SmtpListener

_JUNK = frozenset({"NOOP", "RSET", "VRFY", "EHLO", "HELO"})


class SessionCounts:
    """The counts of one session."""

    def __init__(
        self, settings: SmtpListener, limits: SessionLimits, rates: RateLimits, *, ip: str
    ) -> None:
        """`ip` is the address of the client."""
        self._settings = settings
        self._limits = limits
        self._rates = rates
        self._ip = ip
        self._errors = 0
        self._junk_commands = 0
        self._messages = 0
        self._reserved = Reservation()

    def ended_by(self, reply: str, verb: str, *, trusted: bool) -> str:
        """Count a command with its reply; return the 421 after too many rejected or idle ones."""
        # A trusted client may have a long list of addresses that no longer exist.
        if reply.startswith("5") and not (trusted and verb == "RCPT"):
            self._errors += 1
            if self._errors > self._settings.max_errors:
                return "421 4.7.0 Too many errors, closing the connection"  # RFC 5321 7.8
        if verb in _JUNK and not trusted:
            self._junk_commands += 1
            if self._junk_commands > self._limits.junk_commands:
                return "421 4.7.0 Too many idle commands, closing the connection"  # RFC 5321 7.8
        return ""

    def mail_rejection(self) -> str:
        """Return the reply to MAIL of a stranger beyond a limit, else count its message."""
        settings = self._settings
        if 0 < settings.max_messages <= self._messages:
            return "421 4.7.0 Too many messages in one session, closing it"  # RFC 5321 7.8
        if not settings.max_rate_per_client:
            return ""
        allowed, _, period_s = settings.max_rate_per_client.partition("/")
        text = "Too many messages from your address, try again later"
        reserved = self._rates.reserve([
            RateCharge(
                rule="", per="client", key=client_of(self._ip), recipients=1, allowed=int(allowed),
                period_s=float(period_s), status="4.7.1", text=text,
            )
        ])  # fmt: skip
        if isinstance(reserved, RateCharge):
            return f"450 {reserved.status} {reserved.text}"  # RFC 5321 7.8
        self._reserved = reserved
        return ""

    def add_message(self) -> None:
        """Count a message that was accepted; errors before it do not count."""
        self._messages += 1
        self._errors = self._junk_commands = 0

    def take_reserved(self) -> Reservation:
        """Return what a message counts whose content is complete; the caller gives it back if the
        message is rejected.
        """
        reserved, self._reserved = self._reserved, Reservation()
        return reserved

    def reset(self) -> None:
        """Count nothing for a transaction without an accepted message."""
        self._reserved.give_back()
