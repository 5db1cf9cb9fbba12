"""Limits of one SMTP session.

The limits that an operator sets are in [[smtp]] (relay/base/settings/tree.py): smtp_session checks
the number of sessions, smtp_commands the other limits.

RFC 5321 4.5.3.1 (sizes), 4.5.3.2.7 (time); RFC 4954 4 (AUTH lines).
"""

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import LARGE_BYTES

_MEMORY_MIN, _MEMORY_ENOUGH = 1 << 25, 1 << 30

# limit: addresses of all aliases of a message; then 452
EXPANDED_MAX = 10_000


class SessionLimits(Struct, frozen=True):
    """The limits of one session."""

    # RFC 5321 4.5.3.1.4
    # limit: a command line of SMTP
    command_bytes: int = 2048  # 512 plus the most that all offered extensions may add
    auth_line_bytes: int = 12288  # RFC 4954 4
    # limit: a line of a header by SMTP
    header_line_bytes: int = 65536  # without CRLF; real mail exceeds the 998 of RFC 5322
    # limit: a line of a body by SMTP
    body_line_bytes: int = 1024 * 1024  # the same: pictures in HTML (data:)
    input_bytes: int = 262144  # read ahead of the command in progress
    junk_commands: int = 100  # Postfix's smtpd_junk_command_limit; RFC 5321 7.8
    # limit: failed logins of a session; then 421
    auth_failures: int = 3
    auth_failure_delay_s: float = 1.0  # multiplied by the number of failures
    # limit: a stranger without progress, from half of `max_sessions` on, and a transaction, from
    # half of the connections to a milter on; then 421
    stranger_silence_s: float = 10.0
    # limit: octets of a content, in the same time, that are progress
    progress_bytes: int = 10240
    # limit: a session without mail, while another one has no place; then 421
    without_mail_s: float = 60.0
    # limit: duration of an SMTP session
    session_s: float = 7200.0  # a slow upload of the largest message
    last_reply_s: float = 5.0  # for a client that does not read its last reply
    # limit: messages that a listener receives, in memory
    buffered_bytes: int = 512 * 1024 * 1024
    large_bytes: int = LARGE_BYTES  # the body of a larger message is written to a file
    # limit: the same memory, before larger headers get 452
    calm_bytes: int = 64 * 1024 * 1024  # beyond this in the buffers of all sessions,
    crowded_bytes: int = 128 * 1024  # the body of a message over this size is written to a file
    # for a session that receives a content: what it reads ahead; 0: that is not counted
    reserved_bytes: int = 0

    def within(self, memory_bytes: int) -> "SessionLimits":
        """Return the limits of sessions that have `memory_bytes`: less where this is little."""
        if memory_bytes >= _MEMORY_ENOUGH:
            return self
        memory_bytes = max(memory_bytes, _MEMORY_MIN)
        read_bytes = min(65536, memory_bytes // 2048)  # the kernel gives up to twice as much
        return replace(
            self,
            input_bytes=read_bytes,
            buffered_bytes=min(self.buffered_bytes, memory_bytes // 3),
            calm_bytes=memory_bytes // 16,
            crowded_bytes=read_bytes,
            reserved_bytes=3 * read_bytes,
        )
