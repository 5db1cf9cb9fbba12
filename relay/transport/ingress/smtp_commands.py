"""The SMTP commands: EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA and the others, each with its reply.

One handler is the state of one session: command order, one transaction at a time. The AUTH exchange
is in authentication; whether a sender or a recipient is taken, session_services says. RCPT is
rejected here beyond the limit of recipients per message (max_recipients), and of addresses that
its aliases lead to. MAIL, DATA and BDAT enforce the size limit. Too many rejected commands end the
session with 421.

RFC 5321 3, 4.1, 4.5.1; RFC 1870, 2034, 2920, 3030, 3207, 3461, 4954, 6152, 6409, 6531.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import memory_part
from relay.base.message.envelope import ForwardPath
from relay.base.observe.logs import get_logger
from relay.transport.ingress.authentication import AUTH_OFFER, Authentication
from relay.transport.ingress.data import (
    ChunkFraming,
    ContentCollector,
    ContentRejection,
    DataReply,
    DotFraming,
    Framing,
    subject_in,
)
from relay.transport.ingress.esmtp_parameters import (
    FilterRefusedError,
    MailArgument,
    SmtpRejection,
    check_utf8,
    is_client_name,
    parse_mail,
    parse_rcpt,
)
from relay.transport.ingress.local_users import LocalUser
from relay.transport.ingress.message_limits import SessionCounts
from relay.transport.ingress.session_limits import EXPANDED_MAX
from relay.transport.ingress.session_refusals import (
    ContentRefusedError,
    LineError,
    SessionRefusals,
    path_in,
)
from relay.transport.ingress.session_services import (
    CONNECT,
    LOGIN_ENDED,
    ClientConnection,
    ListenerDependencies,
    RefusedCommand,
    SessionClaims,
    SessionServices,
)
from relay.transport.refusals.refusal import RefusalReason

if TYPE_CHECKING:  # the room of milters
    from relay.transport.ingress.filtering import SessionFilters

_log = get_logger("ingress")

PAUSED = "421 4.3.2 This server takes no mail at present, try again later"  # RFC 5321 3.8
SHUTTING_DOWN = "421 4.3.2 This server is shutting down, try again later"  # RFC 5321 3.8
_BEFORE_TLS = frozenset({"NOOP", "EHLO", "HELO", "STARTTLS", "QUIT", "BDAT"})
# Commands of a browser that a web page directs here, as Postfix's smtpd_forbidden_commands.
_HTTP_METHODS = frozenset(
    {"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "CONNECT", "OPTIONS", "TRACE"}
)
# RFC 3463 3.6
_NO_HTTP = "554 5.5.0 This is an SMTP server and takes no HTTP, closing the connection"
_EARLY_TALKER = "554 5.5.0 You spoke before the greeting, closing the connection"  # RFC 5321 4.3.1
_TALKS_AHEAD = "554 5.5.0 Wait for the reply to this command (RFC 2920 3.1), closing the connection"
_CHUNKS_BEGUN = "503 5.5.1 BDAT has begun this message; send BDAT or RSET"  # RFC 3030 2
_LAST_OF_GROUP = frozenset({"EHLO", "HELO", "DATA"})
_NOT_OFFERED = frozenset({"EXPN", "HELP", "ETRN", "TURN", "SEND", "SOML", "SAML"})
# A larger chunk ends the session. The octets of a smaller one that is refused are received and
# discarded: a client whose connection breaks before the reply tries again for days.
DISCARDED_BYTES_MAX = 4 * 1024**3


class SmtpCommandHandler:
    """The state of one session, a method per command; `closing`: the last reply was returned."""

    def __init__(
        self,
        client: ClientConnection,
        listener: ListenerDependencies,
        services: SessionServices,
        *,
        ip: str,
        trusted: bool,
        tls: str,
    ) -> None:
        self._client = client
        self._listener = listener
        self._services = services
        self._ip = ip
        self._trusted_network = trusted
        self._tls = tls
        self._helo = ""
        self._extended = False
        self._authentication = Authentication(services, listener.limits)
        self._mail: MailArgument | None = None
        self._forward_paths: dict[str, ForwardPath] = {}
        self._expanded = 0  # addresses that the aliases among them lead to
        self._chunks: tuple[ContentCollector, ChunkFraming] | None = None  # of BDAT
        self._counts = SessionCounts(listener.settings, listener.limits, listener.rates, ip=ip)
        self.refusals = SessionRefusals(services)
        self.filters: SessionFilters | None = None  # None: no milter hears the session
        self.user: LocalUser | None = None  # of the machine, on the socket for programs
        self.closing = False
        self.draining = False

    @property
    def has_left_unused_tls(self) -> bool:
        """Whether a client that is gone has sent nothing under TLS."""
        return bool(self._tls) and not self._helo and not self.closing

    @property
    def may_close(self) -> bool:
        """Whether the server is shutting down and no transaction is open."""
        return self.draining and self._mail is None

    async def handle(self, line: bytes, *, more_follows: bool) -> str:
        """Execute a command line and return the reply, or "" if it is already sent.

        `more_follows` means that the client sent more without waiting for this reply.
        """
        verb, _, argument = line.decode("utf-8", "surrogateescape").partition(" ")
        verb = verb.upper()
        if verb in _HTTP_METHODS or verb.startswith("HOST:"):
            return self._close_abusive(_NO_HTTP, verb)
        if more_follows and verb in _LAST_OF_GROUP and not self._is_trusted:
            return self._close_rejected(verb, _TALKS_AHEAD)
        if self.may_close and verb != "QUIT":
            return self._close_rejected(verb, SHUTTING_DOWN)
        if self._services.has_ended and verb != "QUIT":
            return self._close_rejected(verb, LOGIN_ENDED, reason=RefusalReason.LOGIN)
        refused = None
        try:
            reply = await self._do(verb, argument.strip(" "))
        except ContentRefusedError as rejection:
            reply, refused = rejection.refused.reply, rejection.refused
        except FilterRefusedError as rejection:
            reply = str(rejection)
            refused = self._refused(verb, reply, argument, milter=rejection.milter)
            if verb in ("MAIL", "DATA"):
                self.reset()
        except SmtpRejection as rejection:
            reply = str(rejection)
        reply = self._counted(reply, verb=verb)
        if reply.startswith(("4", "5")):
            self._record(refused or self._refused(verb, reply, argument), reply)
        return reply

    def _refused(self, verb: str, reply: str, argument: str, *, milter: str = "") -> RefusedCommand:
        """Return what is recorded of a rejected command; `argument` is used for paths only."""
        sender = self._mail.envelope.reverse_path if self._mail is not None else ""
        recipients = tuple(self._forward_paths) if verb == "DATA" else ()
        if verb == "MAIL" and self._mail is None:
            sender = path_in(argument)
        elif verb == "RCPT":
            recipients = (path_in(argument),)
        return RefusedCommand(
            command=verb if verb in _KNOWN_VERBS else "",
            reply=reply,
            user=self._authentication.user if verb == "AUTH" else "",
            sender=sender,
            recipients=recipients,
            rule=milter,
            reason=RefusalReason.MILTER if milter else None,
        )

    def _record(self, refused: RefusedCommand, reply: str) -> None:
        """Record a rejection with the reply that the client gets."""
        if refused.reply != reply:
            refused = dataclasses.replace(refused, reply=reply, rule="", reason=RefusalReason.LIMIT)
        if refused.command == "RCPT" and self._mail is not None:
            self.refusals.gather(refused, self._claims())
        else:
            self.refusals.record(refused, self._claims())

    async def find_user(self) -> None:
        """Ask who the client is, on the socket for programs."""
        self.user = await self._services.local_user()

    async def greet(self, *, client_spoke: bool) -> str:
        """Return the greeting, or reject a client that spoke first. Milters hear of the others.

        An SMTP client waits for the greeting. A browser that a web page directs here does not, nor
        does most software that only sends spam.
        """
        hostname = self._listener.hostname
        if not client_spoke:
            self.filters = self._services.new_filters()
            if self.filters is not None:
                await self.filters.connect(self._ip, hostname, self._client.fact)
            return f"220 {hostname} ESMTP Relay"  # RFC 5321 3.1
        if self._trusted_network:
            return self._close_abusive(_EARLY_TALKER, CONNECT)
        return self._close_rejected(CONNECT, _EARLY_TALKER)

    def malformed(self, fault: LineError) -> str:
        """Return the reply to a line that is not a command.

        A session that begins with binary data is TLS or another protocol of a browser. A web page
        controls parts of it, such as a session ticket, which could contain commands.
        """
        if fault is LineError.BINARY:
            return self._close_abusive(fault, CONNECT, reason=RefusalReason.TLS, **self._tls_hint())
        if fault is LineError.BARE_LF:
            return self._close_rejected("", fault)
        return self.fail(fault)

    def fail(self, reply: str, *, verb: str = "") -> str:
        """Return the reply to a line that no command handled, or 421 after too many errors."""
        reply = self._counted(reply)
        self._record(self._refused(verb, reply, ""), reply)
        return reply

    def _counted(self, reply: str, *, verb: str = "") -> str:
        """Return `reply`, or 421 after too many rejected or idle commands."""
        reply = self._counts.ended_by(reply, verb, trusted=self._is_trusted) or reply
        return self._close_with(reply) if reply.startswith("421") else reply

    @property
    def _is_trusted(self) -> bool:
        return self._trusted_network or bool(self._services.login)

    async def _do(self, verb: str, argument: str) -> str:
        command = _COMMANDS.get(verb)
        if command is None:
            if verb in _NOT_OFFERED:
                return "502 5.5.1 This command is not offered here"  # RFC 5321 4.2.4
            return "500 5.5.2 Unknown command"  # RFC 5321 4.2.4
        if self._listener.requires_tls and not self._tls and verb not in _BEFORE_TLS:
            return "530 5.7.0 Use STARTTLS first"  # RFC 3207 4
        if self._listener.odd_domain and verb in ("EHLO", "HELO"):
            argument = (
                argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
            )
        elif not argument.isascii():
            check_utf8(argument)
        return await command(self, argument)

    async def helo(self, argument: str) -> str:
        """RFC 5321 4.1.1.1: SMTP without extensions."""
        if not is_client_name(argument, odd=bool(self._listener.odd_domain)):
            return "501 Syntax: HELO your.host.name"  # RFC 5321 4.1.1.1
        await self._greet(argument, extended=False)
        return f"250 {self._listener.hostname}"

    async def ehlo(self, argument: str) -> str:
        """RFC 5321 4.1.1.1: list the extensions."""
        if not is_client_name(argument, odd=bool(self._listener.odd_domain)):
            return "501 Syntax: EHLO your.host.name"  # RFC 5321 4.1.1.1
        await self._greet(argument, extended=True)
        offers = [
            self._listener.hostname,
            "PIPELINING",
            f"SIZE {self._listener.settings.max_message_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "CHUNKING",
        ]
        if self._tls or self._listener.offers_tls:
            offers.append("REQUIRETLS" if self._tls else "STARTTLS")
        if self._offers_auth:
            offers.append(AUTH_OFFER)
        return "\r\n".join((*(f"250-{offer}" for offer in offers), "250 DSN"))

    async def _greet(self, name: str, *, extended: bool) -> None:
        self._helo = name
        self._extended = extended
        self.reset()
        if self.filters is not None:
            await self.filters.helo(name, self._tls, self._client.fact)

    async def noop(self, _argument: str) -> str:
        """RFC 5321 4.1.1.9."""
        return "250 2.0.0 Ok"

    async def vrfy(self, argument: str) -> str:
        """RFC 5321 4.1.1.6, 7.3: does not disclose which addresses exist."""
        if not argument:
            return "501 5.5.4 Syntax: VRFY someone@example.com"  # RFC 5321 4.1.1.6
        return "252 2.1.5 Send mail to find out"  # RFC 5321 3.5.3, 7.3

    async def rset(self, argument: str) -> str:
        """RFC 5321 4.1.1.5."""
        if argument:
            return "501 5.5.4 Syntax: RSET"  # RFC 5321 4.1.1.5
        self.reset()
        if self.filters is not None:
            self.filters.abort()
        return "250 2.0.0 Ok"

    async def quit(self, argument: str) -> str:
        """RFC 5321 4.1.1.10."""
        if argument:
            return "501 5.5.4 Syntax: QUIT"  # RFC 5321 4.1.1.10
        return self._close_with("221 2.0.0 Bye")  # RFC 5321 4.1.1.10

    async def starttls(self, argument: str) -> str:
        """RFC 3207 4."""
        if argument:
            return "501 5.5.4 Syntax: STARTTLS"  # RFC 3207 4
        if self._tls:
            return "503 5.5.1 TLS is active already"  # RFC 3207 4.2
        if not self._listener.offers_tls:
            if hint := self._tls_hint():
                _log.warning("no STARTTLS on this port", client=self._ip, **hint)
            return "502 5.5.1 STARTTLS is not offered here"  # RFC 5321 4.2.4
        # RFC 3207 4.2: discard what was sent before TLS; an attacker may have sent it.
        self._tls = await self._client.start_tls()
        self._helo, self._extended = "", False
        self.reset()
        self._services.forget_login()
        return ""

    @property
    def _offers_auth(self) -> bool:
        one = self._listener
        if one.pickup or self.user is not None:
            return False
        return bool(self._tls) or one.offers_auth_in_clear

    async def auth(self, argument: str) -> str:
        """RFC 4954 4."""
        authentication = self._authentication
        authentication.user = ""
        if not self._extended:
            return "503 5.5.1 Send EHLO first"  # RFC 5321 4.1.4
        if self._services.login:
            return "503 5.5.1 You are authenticated already"  # RFC 4954 4
        if self._mail is not None:
            return "503 5.5.1 Authenticate before MAIL"  # RFC 4954 4
        if not self._offers_auth:
            if self._listener.offers_tls and not self._tls:
                return "538 5.7.11 Use STARTTLS before AUTH"  # RFC 4954 6
            return "502 5.5.1 AUTH is not offered here"  # RFC 5321 4.2.4
        try:
            reply = await authentication.authenticate(
                argument, ask=self._client.ask, pause=self._client.pause
            )
        finally:  # also if the client leaves instead of answering the challenge
            if reply_unsent := authentication.unsent:
                self._record(self._refused("AUTH", reply_unsent, ""), reply_unsent)
        return self._close_with(reply) if authentication.is_exhausted else reply

    async def mail(self, argument: str) -> str:
        """RFC 5321 4.1.1.2. Checks AUTH, the sender address, SIZE and pressure."""
        if not self._helo:
            return "503 5.5.1 Send EHLO first"  # RFC 5321 4.1.4
        if self._mail is not None:
            return "503 5.5.1 MAIL was given already; send RSET to start again"  # RFC 5321 4.1.4
        if self._listener.settings.role != "relay" and not self._is_trusted:
            return "530 5.7.0 Authentication required"  # RFC 4954 6
        if self._listener.pressure.paused():
            return self._close_with(PAUSED)
        domain = self._listener.odd_domain if self.user is None else self._listener.hostname
        mail = parse_mail(argument, extended=self._extended, tls=self._tls, odd_domain=domain)
        login, reverse_path = self._services.login, mail.envelope.reverse_path
        is_known = login or self.user is not None
        if is_known and (rejection := await self._services.sender_rejection(reverse_path)):
            return rejection
        if mail.size_bytes > (limit := self._listener.settings.max_message_size):
            return f"552 5.3.4 The message is larger than {limit} octets"  # RFC 1870 6.1
        if not self._listener.budget.has(min(mail.size_bytes, self._listener.limits.large_bytes)):
            return "452 4.3.1 Too much mail at once, try again later"  # RFC 1870 6.1
        if short := self._listener.pressure.rejection(mail.size_bytes):
            return f"452 4.3.1 No mail is taken now: {short}; try again later"  # RFC 1870 6.1
        if not self._is_trusted:
            rejection = await self._services.sender_rejection(reverse_path)
            if rejection := rejection or self._counts.mail_rejection():
                return rejection
        if self.filters is not None:
            mechanism = self._authentication.mechanism
            await self.filters.mail(reverse_path, argument, mechanism=mechanism, login=login)
        self._mail = mail
        return "250 2.1.0 Ok"

    async def rcpt(self, argument: str) -> str:
        """RFC 5321 4.1.1.3. Enforces the limit of recipients per message: 452 4.5.3."""
        if self._mail is None:
            return "503 5.5.1 Send MAIL first"  # RFC 5321 4.1.4
        if self._chunks is not None:
            return _CHUNKS_BEGUN
        mail = self._mail
        path = parse_rcpt(
            argument, extended=self._extended, smtputf8=mail.envelope.smtputf8,
            odd_domain=self._listener.odd_domain,
        )  # fmt: skip
        if path.address in self._forward_paths:
            return "250 2.1.5 Ok, named already"
        if len(self._forward_paths) >= self._listener.settings.max_recipients:
            # RFC 5321 4.5.3.1.8, 4.5.3.1.10
            return "452 4.5.3 Too many recipients, send the rest in another transaction"
        answer = await self._services.recipient(
            path.address, mail.envelope.reverse_path, size_bytes=mail.size_bytes
        )
        expanded = self._expanded + answer.expanded
        if expanded > EXPANDED_MAX and not self._listener.pickup:
            return "452 4.5.3 Too many recipients of aliases, send the rest in another transaction"
        if answer.reply:
            return answer.reply
        if self.filters is not None:
            await self.filters.rcpt(path.address, argument)
        self._forward_paths[path.address] = path
        self._expanded = expanded
        return "250 2.1.5 Ok"

    async def data(self, argument: str) -> str:
        """RFC 5321 4.1.1.4. The 250 is sent after the spool has committed the message."""
        if argument:
            return "501 5.5.4 Syntax: DATA"  # RFC 5321 4.1.1.4
        if self._chunks is not None:
            return _CHUNKS_BEGUN
        if rejection := self._no_recipients:
            return rejection
        if self.filters is not None:
            await self.filters.data()
        normalizes = self._listener.settings.bare_newline == "normalize"
        content = self._listener.new_content(self._services.new_body)
        return await self._receive("DATA", DotFraming(normalizes=normalizes), content)

    async def bdat(self, argument: str) -> str:
        """RFC 3030 2. The octets of a refused chunk are discarded, and no command is found in them.

        The chunks that follow a refused one get its reply: they were sent before it was read.
        """
        digits, _, last = argument.partition(" ")
        last = last.strip(" ").upper()
        if not (digits.isascii() and digits.isdigit()) or last not in ("", "LAST"):
            # RFC 3030 2; what follows may be text
            return self._close_with("501 5.5.4 Syntax: BDAT octets [LAST]; closing the connection")
        size_bytes, limit = int(digits), self._listener.settings.max_message_size
        if size_bytes > max(limit, DISCARDED_BYTES_MAX):
            return self._close_with(f"{ContentRejection.TOO_BIG}, closing the connection")
        if rejection := self._no_recipients:
            await self._client.read_content(ChunkFraming(size_bytes), None)
            return rejection
        begun, normalizes = self._chunks, self._listener.settings.bare_newline != "reject"
        self._chunks = begun or (
            self._listener.new_content(self._services.new_body),
            ChunkFraming(normalizes=normalizes),
        )
        content, framing = self._chunks
        framing.begin(size_bytes, is_last=bool(last))
        if content.rejection is not None:
            await self._client.read_content(framing, None)
            if last:
                self.reset()
            await self._client.send(content.rejection)  # recorded with the first
            await self._client.pause(0)  # a long batch: let other sessions run
            return ""
        if begun is None and self.filters is not None:
            await self.filters.chunks(content)
        if content.size_bytes + size_bytes > limit:
            content.reject(ContentRejection.TOO_BIG)
        if last:
            self._chunks = None
        return await self._receive("BDAT", framing, content)

    @property
    def _no_recipients(self) -> str:
        """The reply to DATA or BDAT if nobody would get the message, else ""."""
        if self._mail is None:
            return "503 5.5.1 Send MAIL and RCPT first"  # RFC 5321 3.3
        return "" if self._forward_paths else "554 5.5.1 No valid recipients"  # RFC 5321 3.3

    async def _receive(self, verb: str, framing: Framing, content: ContentCollector) -> str:
        """Collect a content or a chunk; take the message over when it is complete."""
        mail, paths = self._mail, tuple(self._forward_paths.values())
        assert mail is not None
        try:
            if not await self._client.read_content(framing, content):
                return ""
            if not framing.is_last and content.rejection is None:
                return framing.chunk_reply
            reserved = self._counts.take_reserved()
            if framing.is_last:
                self.reset()
            try:
                decision = await self._take(mail, paths, content, verb=verb)
            except Exception:  # not if the client disconnects: the acceptance goes on
                reserved.give_back()
                raise
        finally:
            if framing.is_last:
                content.release()
        self._counts.add_message()
        await self._client.send(decision.reply)
        self._listener.crash.reached(CrashPoint.SMTP_REPLIED)
        return ""

    async def _take(
        self, mail: MailArgument, paths: Sequence[ForwardPath], content: ContentCollector,
        *, verb: str,
    ) -> DataReply:  # fmt: skip
        """Return the reply to a content. Raises ContentRefusedError."""
        if self._services.has_ended:  # before the final dot
            self.closing = True
            decision, subject = DataReply(LOGIN_ENDED), ""
        elif content.rejection is not None:
            decision = DataReply(content.rejection, milter=content.refused_by)
            subject = content.subject
        else:
            received = content.hand_over()
            decision = await self._services.accept(mail, paths, received, claims=self._claims())
            if decision.queue_id:
                return decision
            subject = subject_in(memory_part(received.content))
        reason = RefusalReason.MILTER if decision.milter else None
        raise ContentRefusedError(
            RefusedCommand(
                command=verb,
                reply=decision.reply,
                sender=mail.envelope.reverse_path,
                recipients=tuple([path.address for path in paths]),
                subject=subject,
                rule=decision.rule or decision.milter,
                reason=RefusalReason.LOGIN if decision.reply == LOGIN_ENDED else reason,
            )
        )

    def _claims(self) -> SessionClaims:
        return SessionClaims(self._helo, self._extended, self._tls)

    def reset(self) -> None:
        """End the transaction, as RSET does."""
        self._mail = None
        self._counts.reset()
        if self._chunks is not None:
            self._chunks[0].release()
            self._chunks = None
        self._forward_paths = {}
        self._expanded = 0
        self.refusals.flush()

    def _close_rejected(
        self, verb: str, reply: str, *, reason: RefusalReason | None = None, is_logged: bool = True
    ) -> str:
        refused = self._refused(verb, reply, "")
        refused = dataclasses.replace(refused, reason=reason, is_logged=is_logged)
        self.refusals.record(refused, self._claims())
        return self._close_with(reply)

    def _close_abusive(
        self, reply: str, verb: str, *, reason: RefusalReason | None = None, **hint: str
    ) -> str:
        _log.warning("not an SMTP client", client=self._ip, reply=reply, **hint)
        return self._close_rejected(verb, reply, reason=reason, is_logged=False)

    def _tls_hint(self) -> dict[str, str]:
        """Return the field of a log line about TLS, if there is a hint."""
        hint = self._listener.tls_hint
        return {} if hint is None else {"hint": hint()}

    def _close_with(self, reply: str) -> str:
        self.closing = True
        return reply


_COMMANDS: dict[str, Callable[[SmtpCommandHandler, str], Awaitable[str]]] = {
    "HELO": SmtpCommandHandler.helo,
    "EHLO": SmtpCommandHandler.ehlo,
    "STARTTLS": SmtpCommandHandler.starttls,
    "AUTH": SmtpCommandHandler.auth,
    "MAIL": SmtpCommandHandler.mail,
    "RCPT": SmtpCommandHandler.rcpt,
    "DATA": SmtpCommandHandler.data,
    "BDAT": SmtpCommandHandler.bdat,
    "RSET": SmtpCommandHandler.rset,
    "NOOP": SmtpCommandHandler.noop,
    "VRFY": SmtpCommandHandler.vrfy,
    "QUIT": SmtpCommandHandler.quit,
}
_KNOWN_VERBS = frozenset({CONNECT, *_COMMANDS, *_NOT_OFFERED, *_HTTP_METHODS})  # in records
