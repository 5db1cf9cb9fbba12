"""Limits of one SMTP session, and counters shared by the sessions of a listener.

The limits that an operator sets are not here: [[smtp]] max_recipients, max_message_size and
max_sessions (relay/settings/tree.py). smtp_commands checks the first two, SessionCounter the third.

RFC 5321 4.5.3.1 (sizes), 4.5.3.2.7 (time); RFC 4954 4 (AUTH lines).
"""

from collections import Counter
from dataclasses import dataclass

from relay.message.content import LARGE_BYTES


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The limits of one session."""

    command_bytes: int = 2048  # 512 plus the most that all offered extensions may add
    auth_line_bytes: int = 12288  # RFC 4954 4
    text_line_bytes: int = 65536  # without CRLF; real mail exceeds the 998 of RFC 5322
    input_bytes: int = 262144  # read ahead of the command in progress
    errors: int = 20  # Postfix's smtpd_hard_error_limit
    junk_commands: int = 100  # Postfix's smtpd_junk_command_limit
    auth_failures: int = 3  # failed logins; then 421
    auth_failure_delay_s: float = 1.0  # multiplied by the number of failures
    session_s: float = 7200.0  # a slow upload of the largest message
    last_reply_s: float = 5.0  # for a client that does not read its last reply
    sessions_per_client: int = 50  # Postfix's smtpd_client_connection_count_limit
    buffered_bytes: int = 512 * 1024 * 1024  # messages being received by all sessions of a listener
    large_bytes: int = LARGE_BYTES  # the body of a larger message is written to a file


class SessionCounter:
    """Counts the sessions of a listener, in total and per client.

    A client is what relay.accounts.passwords.client_of() returns: an IPv4 address or an IPv6 /64.
    "" has no limit of its own: trusted clients, and Unix sockets.
    """

    def __init__(self, *, sessions: int, per_client: int) -> None:
        self._sessions_max = sessions
        self._per_client_max = per_client
        self._clients: Counter[str] = Counter()
        self.sessions = 0

    def enter(self, client: str) -> str:
        """Count a new session and return "", or return the reply that rejects it."""
        if self.sessions >= self._sessions_max:
            return "421 4.7.0 Too many sessions at once, try again later"
        if client and self._clients[client] >= self._per_client_max:
            return "421 4.7.0 Too many sessions from your address, close some and try again"
        self.sessions += 1
        self._clients[client] += 1
        return ""

    def leave(self, client: str) -> None:
        """Count the end of a session that enter() accepted."""
        self.sessions -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
