"""The numbers that bound a session, and the counters that bound all of them together.

On the path: server makes the counters, every session asks them.
Holds: what was taken is given back exactly once; a counter never exceeds its limit.
Fails: never; a limit that is reached says no.
Standards: RFC 5321 4.5.3.1 (sizes), 4.5.3.2.7 (time); RFC 4954 4 (AUTH lines).
"""

from collections import Counter
from dataclasses import dataclass

from relay.message.content import LARGE_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may do; each number says why it is what it is."""

    command_bytes: int = 2048  # 512 and the most that all our extensions together may add
    auth_line_bytes: int = 12288  # RFC 4954 4
    text_line_bytes: int = 65536  # without CRLF; real mail does not keep to RFC 5322's 998
    input_bytes: int = 262144  # read ahead of the command that is being worked on
    errors: int = 20  # Postfix's smtpd_hard_error_limit
    junk_commands: int = 100  # Postfix's smtpd_junk_command_limit
    auth_failures: int = 3
    auth_failure_delay_s: float = 1.0  # times the failures so far
    session_s: float = 7200.0  # the slowest honest upload of the largest message
    goodbye_s: float = 5.0  # for a client that does not read its last reply
    sessions_per_client: int = 50  # Postfix's smtpd_client_connection_count_limit
    buffered_bytes: int = 512 * 1024 * 1024  # messages being received, all sessions of a listener
    large_bytes: int = LARGE_BYTES  # the body of a message that is larger goes to a file


class SessionCount:
    """How many sessions a listener has, in all and per client address."""

    def __init__(self, *, sessions: int, per_client: int) -> None:
        self._sessions_max = sessions
        self._per_client_max = per_client
        self._clients: Counter[str] = Counter()
        self.sessions = 0

    def enter(self, client: str, *, exempt: bool) -> str:
        """Count a session in and return "", or the reply that turns it away.

        An `exempt` client (trusted, or of this machine) may fill the listener by itself.
        """
        if self.sessions >= self._sessions_max:
            return "421 4.7.0 Too many sessions at once, try again later"
        if not exempt and self._clients[client] >= self._per_client_max:
            return "421 4.7.0 Too many sessions from your address, close some and try again"
        self.sessions += 1
        self._clients[client] += 1
        return ""

    def leave(self, client: str) -> None:
        """Count a session out that enter() let in."""
        self.sessions -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]


class Budget:
    """Memory for messages that are being received, shared by the sessions of a listener."""

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes

    def has(self, size_bytes: int) -> bool:
        """Whether that much is left now; it is not set aside."""
        return size_bytes <= self._left_bytes

    def take(self, size_bytes: int) -> bool:
        """Take that much, or nothing and return False."""
        if size_bytes > self._left_bytes:
            return False
        self._left_bytes -= size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Return what was taken."""
        self._left_bytes += size_bytes
