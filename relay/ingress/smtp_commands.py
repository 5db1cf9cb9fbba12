"""One SMTP session as a conversation: each command line and the reply to it.

On the path: the session reads lines and writes replies; a complete message goes to acceptance.
Holds: the sequence rules of RFC 5321; one transaction at a time; state resets as the RFCs say.
Fails: every fault of the client is a reply that says what to do; too many of them end the session.
Standards: RFC 5321 3, 4.1, 4.5.1; RFC 1870, 2034, 2920, 3207, 3461, 4954, 6152, 6409, 6531.
"""

import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from relay.accounts import DEAD_LETTER, LoginDelayedError
from relay.crashpoints import CrashPoint, CrashPoints
from relay.ingress.authorization import Passwords, exchange, refused_sender
from relay.ingress.data import ContentReader, Decision, Origin, Received
from relay.ingress.esmtp_parameters import MailArgument, Refused, parse_mail, parse_rcpt
from relay.ingress.session_limits import Budget, Limits
from relay.mailbox.types import Room
from relay.message.envelope import Envelope, ForwardPath
from relay.observe.logs import get_logger
from relay.routing.route_table import InvalidRecipient, LocalRecipient, RemoteRecipient, RouteTable
from relay.spool.types import Arrival

_log = get_logger("ingress")

SHUTTING_DOWN = "421 4.3.2 This server is shutting down, try again later"
_USER_CHARACTERS_MAX = 128  # of what a client calls itself, in the log
_HELO_NAME = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}").fullmatch
_BEFORE_TLS = frozenset({"NOOP", "EHLO", "HELO", "STARTTLS", "QUIT"})
_JUNK = frozenset({"NOOP", "RSET", "VRFY", "EHLO", "HELO"})
_TELLING = frozenset({"MAIL", "RCPT", "DATA", "AUTH"})  # whose refusals an operator wants to see
# What a browser says that was made to send a request here: as Postfix's smtpd_forbidden_commands.
_HTTP_METHODS = frozenset(
    {"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "CONNECT", "OPTIONS", "TRACE"}
)
_HTTP_HOST = "HOST:"
_NO_HTTP = "554 5.5.0 This is an SMTP server and takes no HTTP, closing the connection"
_TOO_EARLY = "554 5.5.0 You spoke before the greeting, closing the connection"
_NOT_OFFERED = frozenset({"BDAT", "EXPN", "HELP", "ETRN", "TURN", "SEND", "SOML", "SAML"})


class LineFault(StrEnum):
    """Why a command line was thrown away: the reply that says so."""

    BARE = "500 5.5.2 Lines must end in CRLF, and CR, LF and NUL may not stand alone"
    TOO_LONG = "500 5.5.2 Line too long"
    BINARY = (
        "554 5.5.0 This listener begins without TLS, and commands are text; send STARTTLS first,"
        " or use a listener with TLS; closing the connection"
    )


class Wire(Protocol):
    """What a conversation asks of its connection."""

    async def send(self, reply: str) -> None:
        """Write a reply now, with those before it."""
        ...

    async def ask(self, reply: str) -> str:
        """Write a reply and return the client's next line. Raises Refused for a bad one."""
        ...

    async def read_content(self, reader: ContentReader) -> bool:
        """Say 354 and feed `reader` to the end of data; False when the client went away before."""
        ...

    async def start_tls(self) -> str:
        """Discard what the client sent ahead, say 220, do the handshake; return the version."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait, unless the client goes away."""
        ...


class Quota(Protocol):
    """Whether mail fits: a part of relay.mailbox's DeliveryStore."""

    async def room(self, account: str, size: int) -> Room:
        """Whether a message of `size` bytes fits under the account's quota."""
        ...


Accept = Callable[[Envelope, Received, Origin], Awaitable[Decision]]


@dataclass(frozen=True, slots=True)
class Service:
    """What a listener offers: the same for all its sessions."""

    hostname: str
    limits: Limits
    max_message_bytes: int
    max_recipients: int
    budget: Budget
    router: RouteTable
    accounts: Passwords
    quota: Quota
    accept: Accept
    arrival: Callable[[], Arrival]
    crash: CrashPoints
    shortage: Callable[[int], str]  # why no message of so many bytes is taken now, "" if it is
    offers_tls: bool = False
    requires_tls: bool = False
    requires_auth: bool = False
    offers_auth_in_clear: bool = False
    pickup: bool = False


class Conversation:
    """The state of one session, a method per command; `closing`: the last reply was given."""

    def __init__(self, wire: Wire, service: Service, *, ip: str, trusted: bool, tls: str) -> None:
        self._wire = wire
        self._service = service
        self._ip = ip
        self._trusted_network = trusted
        self._tls = tls
        self._helo = ""
        self._extended = False
        self._login = ""
        self._mail: MailArgument | None = None
        self._forward_paths: dict[str, ForwardPath] = {}
        self._errors = 0
        self._junk_commands = 0
        self._auth_failures = 0
        self._tried_user = ""
        self.closing = False
        self.draining = False

    @property
    def may_leave(self) -> bool:
        """Whether the server shuts down and no transaction is open."""
        return self.draining and self._mail is None

    async def handle(self, line: bytes) -> str:
        """Do what a command line says and return the reply; "" when it has been sent already."""
        verb, _, argument = line.decode("utf-8", "surrogateescape").partition(" ")
        verb = verb.upper()
        if verb in _HTTP_METHODS or verb.startswith(_HTTP_HOST):
            return self._hang_up(_NO_HTTP)
        if self.may_leave and verb != "QUIT":
            return self._goodbye(SHUTTING_DOWN)
        try:
            reply = await self._do(verb, argument.strip(" "))
        except Refused as refused:
            reply = str(refused)
        if reply.startswith(("4", "5")) and verb in _TELLING:
            tried = {"user": self._tried_user} if verb == "AUTH" else {}
            _log.info("refused", qid="NOQUEUE", client=self._ip, verb=verb, **tried, reply=reply)
        return self.count(reply, verb=verb)

    def greet(self, *, client_spoke: bool) -> str:
        """Return the greeting, or a refusal of a client that spoke first and is trusted by address.

        An SMTP client waits for the greeting. What a web page makes a browser send does not.
        """
        if client_spoke and self._trusted_network:
            return self._hang_up(_TOO_EARLY)
        return f"220 {self._service.hostname} ESMTP Relay"

    def malformed(self, fault: LineFault) -> str:
        """Return the reply to a line that is no command.

        A session that begins with other than text is TLS, or another protocol of a browser: with
        what a web page may write into it, such as a session ticket, it could carry commands.
        """
        return self._hang_up(fault) if fault is LineFault.BINARY else self.count(fault)

    def count(self, reply: str, *, verb: str = "") -> str:
        """Return `reply`, or a 421 instead when it is one refusal or idle command too many."""
        trusted = self._is_trusted
        # A trusted client with a long list of dead addresses is no attacker.
        if reply.startswith("5") and not (trusted and verb == "RCPT"):
            self._errors += 1
            if self._errors > self._service.limits.errors:
                return self._goodbye("421 4.7.0 Too many errors, closing the connection")
        if verb in _JUNK and not trusted:
            self._junk_commands += 1
            if self._junk_commands > self._service.limits.junk_commands:
                return self._goodbye("421 4.7.0 Too many idle commands, closing the connection")
        return reply

    @property
    def _is_trusted(self) -> bool:
        return self._trusted_network or bool(self._login)

    async def _do(self, verb: str, argument: str) -> str:
        command = _COMMANDS.get(verb)
        if command is None:
            if verb in _NOT_OFFERED:
                return "502 5.5.1 This command is not offered here"
            return "500 5.5.2 Unknown command"
        if self._service.requires_tls and not self._tls and verb not in _BEFORE_TLS:
            return "530 5.7.0 Use STARTTLS first"
        if not argument.isascii():
            _check_utf8(argument)
        return await command(self, argument)

    async def helo(self, argument: str) -> str:
        """RFC 5321 4.1.1.1: greet without extensions."""
        if not _HELO_NAME(argument):
            return "501 Syntax: HELO your.host.name"
        self._greet(argument, extended=False)
        return f"250 {self._service.hostname}"

    async def ehlo(self, argument: str) -> str:
        """RFC 5321 4.1.1.1: greet, and say what is offered."""
        if not _HELO_NAME(argument):
            return "501 Syntax: EHLO your.host.name"
        self._greet(argument, extended=True)
        offers = [
            self._service.hostname,
            "PIPELINING",
            f"SIZE {self._service.max_message_bytes}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
        ]
        if self._service.offers_tls and not self._tls:
            offers.append("STARTTLS")
        if self._offers_auth:
            offers.append("AUTH PLAIN LOGIN")
        return "\r\n".join((*(f"250-{offer}" for offer in offers), "250 DSN"))

    def _greet(self, name: str, *, extended: bool) -> None:
        self._helo = name
        self._extended = extended
        self._reset()

    async def noop(self, _argument: str) -> str:
        """RFC 5321 4.1.1.9."""
        return "250 2.0.0 Ok"

    async def vrfy(self, argument: str) -> str:
        """RFC 5321 4.1.1.6, 7.3: says nothing of who is here."""
        if not argument:
            return "501 5.5.4 Syntax: VRFY someone@example.com"
        return "252 2.1.5 Send mail to find out"

    async def rset(self, argument: str) -> str:
        """RFC 5321 4.1.1.5."""
        if argument:
            return "501 5.5.4 Syntax: RSET"
        self._reset()
        return "250 2.0.0 Ok"

    async def quit(self, argument: str) -> str:
        """RFC 5321 4.1.1.10."""
        if argument:
            return "501 5.5.4 Syntax: QUIT"
        return self._goodbye("221 2.0.0 Bye")

    async def starttls(self, argument: str) -> str:
        """RFC 3207 4."""
        if argument:
            return "501 5.5.4 Syntax: STARTTLS"
        if self._tls:
            return "503 5.5.1 TLS is active already"
        if not self._service.offers_tls:
            return "502 5.5.1 STARTTLS is not offered here"
        # RFC 3207 4.2: whatever was said in clear may have been somebody else's.
        self._tls = await self._wire.start_tls()
        self._helo, self._extended, self._login = "", False, ""
        self._reset()
        return ""

    @property
    def _offers_auth(self) -> bool:
        service = self._service
        return not service.pickup and (bool(self._tls) or service.offers_auth_in_clear)

    async def auth(self, argument: str) -> str:
        """RFC 4954 4."""
        self._tried_user = ""
        if not self._extended:
            return "503 5.5.1 Send EHLO first"
        if self._login:
            return "503 5.5.1 You are authenticated already"
        if self._mail is not None:
            return "503 5.5.1 Authenticate before MAIL"
        if not self._offers_auth:
            if self._service.offers_tls and not self._tls:
                return "538 5.7.11 Use STARTTLS before AUTH"
            return "502 5.5.1 AUTH is not offered here"
        credentials = await exchange(argument, self._wire.ask)
        self._tried_user = credentials.user[:_USER_CHARACTERS_MAX]
        refusal = "535 5.7.8 User or password is wrong"
        try:
            account = await self._service.accounts.by_password(
                credentials.user, credentials.password, client=self._ip
            )
        except LoginDelayedError as delayed:
            account, refusal = None, _delayed_reply(delayed)
            if delayed.__cause__ is not None:
                _log.error("password not checked", client=self._ip, error=delayed.__cause__)
        if account is not None:
            self._login = account.address
            return "235 2.7.0 Authentication successful"
        self._auth_failures += 1
        await self._wire.pause(self._service.limits.auth_failure_delay_s * self._auth_failures)
        if self._auth_failures >= self._service.limits.auth_failures:
            return self._goodbye("421 4.7.0 Too many failed logins, closing the connection")
        return refusal

    async def mail(self, argument: str) -> str:
        """RFC 5321 4.1.1.2."""
        if not self._helo:
            return "503 5.5.1 Send EHLO first"
        if self._mail is not None:
            return "503 5.5.1 MAIL was given already; send RSET to start again"
        if self._service.requires_auth and not self._is_trusted:
            return "530 5.7.0 Authentication required"
        mail = parse_mail(argument, extended=self._extended)
        if self._login:
            accounts = self._service.accounts
            if refusal := refused_sender(accounts, self._login, mail.reverse_path):
                return refusal
        if mail.size_bytes > (limit := self._service.max_message_bytes):
            return f"552 5.3.4 The message is larger than {limit} octets"
        if not self._service.budget.has(min(mail.size_bytes, self._service.limits.large_bytes)):
            return "452 4.3.1 Too much mail at once, try again later"
        if short := self._service.shortage(mail.size_bytes):
            return f"452 4.3.1 No mail is taken now: {short}; try again later"
        self._mail = mail
        return "250 2.1.0 Ok"

    async def rcpt(self, argument: str) -> str:
        """RFC 5321 4.1.1.3."""
        if self._mail is None:
            return "503 5.5.1 Send MAIL first"
        mail = self._mail
        path = parse_rcpt(argument, extended=self._extended, smtputf8=mail.smtputf8)
        if path.address in self._forward_paths:
            return "250 2.1.5 Ok, named already"
        if len(self._forward_paths) >= self._service.max_recipients:
            return "452 4.5.3 Too many recipients, send the rest in another transaction"
        if refusal := await self._refusal_of(path.address, mail.size_bytes):
            return refusal
        self._forward_paths[path.address] = path
        return "250 2.1.5 Ok"

    async def _refusal_of(self, address: str, size_bytes: int) -> str:
        """Return why a recipient is not taken; "" if it is. Pickup's are judged after DATA."""
        if self._service.pickup:
            return ""
        match self._service.router.examine(address):
            case RemoteRecipient():
                if not self._is_trusted:
                    return "550 5.7.1 Relaying denied: authenticate, or use your own mail server"
            case LocalRecipient(mailbox):
                if mailbox != DEAD_LETTER:
                    match await self._service.quota.room(mailbox, size_bytes):
                        case Room.FULL:
                            return f"452 4.2.2 <{address}>: the mailbox is full, try again later"
                        case Room.NEVER:
                            return f"552 5.2.2 <{address}>: the message is larger than the mailbox"
            case InvalidRecipient(text=text):
                return text
        return ""

    async def _refusal_by_size(self, envelope: Envelope, told_bytes: int, size_bytes: int) -> str:
        """Return why nobody gets what is larger than was told; "" if somebody does."""
        refusal = ""
        if size_bytes > told_bytes:
            for path in envelope.forward_paths:
                refusal = await self._refusal_of(path.address, size_bytes)
                if not refusal:
                    break
        return refusal

    async def data(self, argument: str) -> str:
        """RFC 5321 4.1.1.4."""
        if argument:
            return "501 5.5.4 Syntax: DATA"
        if self._mail is None:
            return "503 5.5.1 Send MAIL and RCPT first"
        if not self._forward_paths:
            return "554 5.5.1 No valid recipients"
        service = self._service
        reader = ContentReader(
            size_max_bytes=service.max_message_bytes,
            limits=service.limits,
            budget=service.budget,
            arrival=service.arrival,
        )
        try:
            if not await self._wire.read_content(reader):
                return ""
            envelope, told_bytes = self._envelope(self._mail), self._mail.size_bytes
            self._reset()
            if reader.refusal is not None:
                return reader.refusal
            if refusal := await self._refusal_by_size(envelope, told_bytes, reader.size_bytes):
                return refusal
            decision = await service.accept(envelope, reader.hand_over(), self._origin())
        finally:
            reader.release()
        if not decision.queue_id:
            return decision.reply
        self._errors = self._junk_commands = 0
        await self._wire.send(decision.reply)
        service.crash.reached(CrashPoint.SMTP_REPLIED)
        return ""

    def _envelope(self, mail: MailArgument) -> Envelope:
        return Envelope(
            reverse_path=mail.reverse_path,
            forward_paths=tuple(self._forward_paths.values()),
            ret=mail.ret,
            envid=mail.envid,
            smtputf8=mail.smtputf8,
            eight_bit=mail.eight_bit,
        )

    def _origin(self) -> Origin:
        return Origin(
            ip=self._ip,
            helo=self._helo,
            extended=self._extended,
            tls=self._tls,
            login=self._login,
            trusted=self._is_trusted,
            pickup=self._service.pickup,
        )

    def _reset(self) -> None:
        self._mail = None
        self._forward_paths = {}

    def _hang_up(self, reply: str) -> str:
        _log.warning("no SMTP client", client=self._ip, reply=reply)
        return self._goodbye(reply)

    def _goodbye(self, reply: str) -> str:
        self.closing = True
        return reply


def _delayed_reply(delayed: LoginDelayedError) -> str:
    seconds = math.ceil(delayed.retry_after_s)
    return f"454 4.7.0 {delayed}, try again in {seconds} second{'' if seconds == 1 else 's'}"


def _check_utf8(argument: str) -> None:
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:  # a surrogate stands for an octet that was no UTF-8
        raise Refused("501 5.5.2 The argument is neither ASCII nor UTF-8") from None


_COMMANDS: dict[str, Callable[[Conversation, str], Awaitable[str]]] = {
    "HELO": Conversation.helo,
    "EHLO": Conversation.ehlo,
    "STARTTLS": Conversation.starttls,
    "AUTH": Conversation.auth,
    "MAIL": Conversation.mail,
    "RCPT": Conversation.rcpt,
    "DATA": Conversation.data,
    "RSET": Conversation.rset,
    "NOOP": Conversation.noop,
    "VRFY": Conversation.vrfy,
    "QUIT": Conversation.quit,
}
