"""Record what a session refuses: the reason of each reply, and one record for equal recipients.

The recipients of a transaction that got the same reply are one record. It is made when the
transaction ends or pauses for a second. Of AUTH only the user name is recorded, of a content only
the Subject. A line that is no known command is not recorded, because a client may send a password
where none is expected. Metrics and the log have what is recorded, but under pressure and beyond
limits the log has one line a second. Refusals in pickup's sessions are only logged, because the
journeys of their messages have the rest.
"""

import asyncio
import dataclasses
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from relay.base.accounts.usage import LIMIT_OF_ACCOUNT
from relay.base.clock import Clock, rfc3339
from relay.base.message.verdict import RULES_UNAVAILABLE
from relay.base.observe.logs import get_logger
from relay.transport.ingress.data import Origin
from relay.transport.ingress.esmtp_parameters import SmtpRejection
from relay.transport.ingress.session_client import LOGIN_ENDED, RefusedCommand, SessionClaims
from relay.transport.refusals.day_files import RefusalFiles
from relay.transport.refusals.refusal import RECIPIENTS_MAX, Refusal, RefusalReason

if TYPE_CHECKING:  # a library that only the owner of the mail needs
    from relay.base.observe.metrics import Metrics

_ADDRESS_CHARACTERS_MAX = 320  # RFC 5321 4.5.3.1
_TEXT_CHARACTERS_MAX = 512
_GATHERED_MAX = 20  # different replies to the recipients of a transaction
_PAUSE_S = 1.0
_SYNTAX = frozenset({"500", "501", "502", "503", "504", "555"})
_BY_STATUS = {
    "4.3.0": RefusalReason.PRESSURE,
    "4.3.1": RefusalReason.PRESSURE,
    "4.3.2": RefusalReason.PRESSURE,
    "4.5.3": RefusalReason.LIMIT,
    "5.4.6": RefusalReason.LIMIT,
    "5.2.2": RefusalReason.SIZE,
    "5.3.4": RefusalReason.SIZE,
    "4.7.1": RefusalReason.RULE,
    "5.5.0": RefusalReason.SYNTAX,
    "5.5.1": RefusalReason.RECIPIENT,  # of DATA and BDAT: none is valid
    "5.5.2": RefusalReason.SYNTAX,
    "5.6.0": RefusalReason.SYNTAX,
    "5.6.7": RefusalReason.SYNTAX,
}
_BY_COMMAND = {
    "AUTH": RefusalReason.LOGIN,
    "MAIL": RefusalReason.SENDER,
    "RCPT": RefusalReason.RECIPIENT,
    "DATA": RefusalReason.RECIPIENT,
    "BDAT": RefusalReason.RECIPIENT,
}
# of full mailboxes and holds, and of logins that Relay is unable to check
_OF_HERE = ("452 4.2.2 ", "452 4.3.1 ", "454 4.7.0 The login could not be checked")
_log = get_logger("ingress")


class LineError(StrEnum):
    """The reply to a line that is not a command."""

    BARE = "500 5.5.2 Lines must end in CRLF, and CR and NUL may not stand alone"  # RFC 5321 2.3.8
    # RFC 5321 2.3.8
    BARE_LF = "554 5.5.2 Lines must end in CRLF, LF may not stand alone, closing the connection"
    TOO_LONG = "500 5.5.2 Line too long"  # RFC 5321 4.5.3.1.4, 4.5.3.1.9
    BINARY = (
        # RFC 3463 3.6
        "554 5.5.0 This listener begins without TLS, and commands are text; send STARTTLS first,"
        " or use a listener with TLS; closing the connection"
    )


class CommandRefusedError(SmtpRejection):
    """A command or a received content is rejected; `refused` is recorded."""

    def __init__(self, refused: RefusedCommand) -> None:
        super().__init__(refused.reply)
        self.refused = refused


def reason_of(command: str, reply: str, *, rule: str = "") -> RefusalReason:
    """Return the reason that a reply of ingress has."""
    code, _, text = reply.partition(" ")
    status = text.partition(" ")[0]
    if rule or RULES_UNAVAILABLE in reply:
        return RefusalReason.RULE
    if code in ("530", "538"):
        return RefusalReason.TLS if "STARTTLS" in reply else RefusalReason.LOGIN
    if code in _SYNTAX:
        return RefusalReason.SYNTAX
    is_of_client = command == "MAIL" and code == "450"  # max_rate_per_client
    if is_of_client or text.startswith(LIMIT_OF_ACCOUNT, len(status) + 1):
        return RefusalReason.LIMIT
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if reply == LOGIN_ENDED:
        return RefusalReason.LOGIN
    if code == "421":
        return RefusalReason.LOGIN if command == "AUTH" else RefusalReason.LIMIT
    if code == "553":
        return RefusalReason.SENDER
    return _BY_COMMAND.get(command, RefusalReason.SYNTAX)


def handshake_fault(error: OSError) -> str:
    """Return what failed in a TLS handshake: OpenSSL's reason, or how the client disconnected."""
    if isinstance(error, ssl.SSLError) and error.reason:
        fault = error.reason.replace("_", " ").lower()
    elif isinstance(error, ConnectionAbortedError):
        fault = "it took too long, or the client disconnected"
    elif isinstance(error, ConnectionError):
        fault = "the client disconnected"
    else:
        fault = str(error)
    return f"TLS handshake failed: {fault}"


class ListenerRefusals(Struct, frozen=True):
    """Records what the sessions of a listener refuse."""

    recorder: RefusalFiles | None  # None: only the log has it
    metrics: "Metrics"
    clock: Clock
    address: Callable[[], str] = lambda: ""  # of the listener, with its port

    def record(self, refused: RefusedCommand, origin: Origin) -> None:
        """Record a refusal."""
        recipients = refused.recipients[:RECIPIENTS_MAX]
        refusal = Refusal(
            at=rfc3339(self.clock.time_us()),
            client=origin.ip,
            helo=_shown(origin.helo, _TEXT_CHARACTERS_MAX),
            listener=self.address(),
            account=_shown(refused.user or origin.login, _ADDRESS_CHARACTERS_MAX),
            sender=_shown(refused.sender, _ADDRESS_CHARACTERS_MAX),
            recipients=tuple(
                [_shown(recipient, _ADDRESS_CHARACTERS_MAX) for recipient in recipients]
            ),
            recipient_count=refused.count or len(refused.recipients),
            subject=_shown(refused.subject, _TEXT_CHARACTERS_MAX),
            command=_shown(refused.command, _TEXT_CHARACTERS_MAX),
            reply=_shown(refused.reply, _TEXT_CHARACTERS_MAX),
            reason=refused.reason or reason_of(refused.command, refused.reply, rule=refused.rule),
            rule=_shown(refused.rule, _TEXT_CHARACTERS_MAX),
        )
        if refused.is_logged:
            _log_refusal(refusal)
        if self.recorder is not None:
            self.metrics.refusals.labels(refusal.reason.value).inc()
            if refusal.command == "AUTH" and refusal.reason is RefusalReason.LOGIN:
                self.metrics.auth_failures.inc()
            self.recorder.record(refusal)


@dataclass(slots=True)
class _Gathered:
    """Recipients with the same reply; `refused` has the first ones."""

    refused: RefusedCommand
    claims: SessionClaims
    count: int = 1


@dataclass(slots=True)
class SessionRefusals:
    """Records what one session refuses."""

    _refused: Callable[[RefusedCommand, SessionClaims], None]  # SessionClient.refused
    gathered: dict[str, _Gathered] = field(default_factory=dict, init=False)
    _timer: asyncio.TimerHandle | None = None

    def record(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        """Record a refusal, after the recipients that were gathered."""
        self.flush()
        self._refused(refused, claims)

    def gather(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        """Record a recipient of a transaction, together with others that get the same reply."""
        (address,) = refused.recipients
        key = refused.reply.replace(address, "") if address else refused.reply
        same = self.gathered.get(key)
        if same is None:
            if len(self.gathered) >= _GATHERED_MAX:
                self.flush()
            self.gathered[key] = _Gathered(refused, claims)
        else:
            same.count += 1
            named = same.refused.recipients
            if len(named) < RECIPIENTS_MAX:
                same.refused = dataclasses.replace(same.refused, recipients=(*named, address))
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PAUSE_S, self.flush)  # real time: a client

    def flush(self) -> None:
        """Record what was gathered: the transaction has ended, or pauses."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self.gathered = self.gathered, {}
        for group in gathered.values():
            self._refused(dataclasses.replace(group.refused, count=group.count), group.claims)


def path_in(argument: str) -> str:
    """Return the address that an argument of MAIL or RCPT seems to have."""
    start = argument.find("<")
    end = argument.find(">", start)
    if 0 <= start < end:
        return argument[start + 1 : end]
    return argument.partition(":")[2].strip(" ").partition(" ")[0]


def _shown(text: str, characters_max: int) -> str:
    """Return text of a client in bounded length, without control characters."""
    text = text[:characters_max]
    if text.isprintable():
        return text
    return "".join([character if character.isprintable() else " " for character in text]).strip()


def _log_refusal(refusal: Refusal) -> None:
    """Log one line, without the fields that do not apply."""
    is_auth = refusal.command == "AUTH"
    fields: dict[str, Any] = {
        "user": refusal.account if is_auth else "",
        "login": "" if is_auth else refusal.account,
        "sender": refusal.sender,
        "recipient": refusal.recipients[0] if refusal.recipients else "",
        "recipients": refusal.recipient_count if refusal.recipient_count > 1 else 0,
        "subject": refusal.subject,
        "rule": refusal.rule,
    }
    is_bounded = refusal.reason in (RefusalReason.PRESSURE, RefusalReason.LIMIT)
    is_bounded |= refusal.reply.startswith(_OF_HERE)
    write = partial(_log.repeated, "info", of=refusal.command) if is_bounded else _log.info
    write(
        "rejected",
        qid="NOQUEUE",
        client=refusal.client,
        verb=refusal.command,
        **{name: value for name, value in fields.items() if value},
        reason=refusal.reason.value,  # the log is slow for what is not exactly a str
        reply=refusal.reply,
    )
