"""The SMTP commands: EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA and the others, each with its reply.

SmtpCommands is the state of one session: command order, one transaction at a time, errors and
messages. The AUTH exchange is in authentication. The owner of the mail decides whether a sender or
a recipient is accepted (SessionClient). RCPT is rejected here beyond the limit of recipients per
message (max_recipients), and beyond the limit of addresses of aliases. MAIL, DATA and BDAT enforce
the size limit. Too many rejected commands end the session with 421.

RFC 5321 3, 4.1, 4.5.1; RFC 1870, 2034, 2920, 3030, 3207, 3461, 4954, 6152, 6409, 6531.
"""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import memory_part
from relay.base.message.envelope import KEY_PARAMETER, ForwardPath
from relay.base.observe.logs import get_logger
from relay.base.sliding_window import Reservation
from relay.base.socket_address import client_of
from relay.transport.ingress import esmtp_parameters
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
from relay.transport.ingress.local_users import LocalUser
from relay.transport.ingress.session_client import (
    CONNECT,
    ListenerDependencies,
    OfferedMail,
    RefusedCommand,
    SessionClaims,
    SessionClient,
)
from relay.transport.ingress.session_limits import EXPANDED_MAX
from relay.transport.ingress.session_refusals import (
    CommandRefusedError,
    LineError,
    SessionRefusals,
    path_in,
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
_ALONE = frozenset({"STARTTLS", "DATA", "RSET", "QUIT"})  # without an argument
_IDLE = frozenset({"NOOP", "RSET", "VRFY", "EHLO", "HELO"})
_LAST_OF_GROUP = frozenset({"EHLO", "HELO", "DATA"})
_NOT_OFFERED = frozenset({"EXPN", "HELP", "ETRN", "TURN", "SEND", "SOML", "SAML"})
# A larger chunk ends the session. The octets of a smaller one that is refused are received and
# discarded: a client whose connection breaks before the reply tries again for days.
DISCARDED_BYTES_MAX = 4 * 1024**3


class SmtpCommands:
    """The state of one session, a method per command; `closing`: the last reply was returned.

    The subclass SmtpSession has the connection, and the methods that are not implemented here.
    """

    def __init__(
        self, listener: ListenerDependencies, client: SessionClient, *, tls: str, key: str | None
    ) -> None:
        """`key` is that of the client in Shares before a login."""
        self._listener = listener
        self.key = key
        self._client = client
        self._tls = tls
        self._helo = ""
        self._extended = False
        self._authentication = Authentication(client.log_in, listener.limits)
        self._mail: esmtp_parameters.MailArgument | None = None
        self._forward_paths: dict[str, ForwardPath] = {}
        self._expanded = 0  # addresses that the aliases among them lead to
        self._chunks: tuple[ContentCollector, ChunkFraming] | None = None  # of BDAT
        self._reserved: Reservation | None = None  # of the message in the rate limit of the client
        self._messages = 0  # how many were accepted
        self._errors = self._idle_commands = 0  # after the last message
        self.refusals = SessionRefusals(client.refused)
        self.filters: SessionFilters | None = None  # None: no milter hears the session
        self.user: LocalUser | None = None  # of the machine, on the socket for programs
        self.closing = False
        self.draining = False

    async def send(self, reply: str) -> None:
        """Write a reply now, after the buffered ones."""
        raise NotImplementedError

    async def ask(self, reply: str) -> str:
        """Write a reply and return the client's next line. Raises SmtpRejection if malformed."""
        raise NotImplementedError

    async def read_content(self, framing: Framing, content: ContentCollector | None) -> bool:
        """Collect a content or a chunk, or discard it; False if the client disconnects."""
        raise NotImplementedError

    async def start_tls(self) -> str:
        """Reply 220, discard pipelined input, do the handshake; return the TLS version."""
        raise NotImplementedError

    def fact(self, name: str) -> Any:
        """Return a fact of the transport, as its get_extra_info() does."""
        raise NotImplementedError

    def move_to_logins(self, login: str) -> str:
        """Take the place of a login. If there is none, return the reply."""
        raise NotImplementedError

    def progress(self) -> None:
        """Record that the client has brought its mail nearer: its silence begins anew."""
        raise NotImplementedError

    async def pause(self, seconds: float) -> None:
        """Wait, or until the client disconnects."""
        raise NotImplementedError

    @property
    def has_left_unused_tls(self) -> bool:
        """Whether the client disconnected without sending anything under TLS."""
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
        refused = None
        try:
            reply = await self._do(verb, argument.strip(" "))
        except CommandRefusedError as rejection:
            reply, refused = rejection.refused.reply, rejection.refused
        except esmtp_parameters.FilterRefusedError as rejection:
            reply = str(rejection)
            refused = self._refused(verb, reply, argument, milter=rejection.milter)
            if verb in ("MAIL", "DATA") and self.filters is not None:
                self.reset()
                self.filters.abort()
        except esmtp_parameters.SmtpRejection as rejection:
            reply = str(rejection)
        reply = self._counted(reply, verb=verb)
        if reply.startswith(("4", "5")):
            self._record(refused or self._refused(verb, reply, argument), reply)
        return reply

    def _refused(self, verb: str, reply: str, argument: str, *, milter: str = "") -> RefusedCommand:
        """Return the record of a rejected command; of `argument` only the path is used."""
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

    async def greet(self, *, client_spoke: bool) -> str:
        """Return the greeting, or reject a client that spoke first. Milters hear of the others.

        An SMTP client waits for the greeting. A browser that a web page directs here does not, nor
        does most software that only sends spam.
        """
        hostname = self._listener.hostname
        if self._client.find_user is not None:
            self.user = await self._client.find_user()
        if not client_spoke:
            self.filters = self._client.new_filters()
            if self.filters is not None:
                self.filters.connect(self._client.ip, hostname, self.fact)
            return f"220 {hostname} ESMTP Relay"  # RFC 5321 3.1
        if self._client.is_trusted:
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
        # A trusted client may have a long list of addresses that no longer exist.
        if reply.startswith("5") and not (verb == "RCPT" and self._is_trusted):
            self._errors += 1
            if self._errors > self._listener.settings.max_errors:
                reply = "421 4.7.0 Too many errors, closing the connection"  # RFC 5321 7.8
        elif verb in _IDLE and not self._is_trusted:
            self._idle_commands += 1
            if self._idle_commands > self._listener.limits.junk_commands:
                reply = "421 4.7.0 Too many idle commands, closing the connection"  # RFC 5321 7.8
        return self._end_with(reply) if reply.startswith("421") else reply

    @property
    def _is_trusted(self) -> bool:
        return self._client.is_trusted or bool(self._authentication.login)

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
            esmtp_parameters.check_utf8(argument)
        if argument and verb in _ALONE:
            return f"501 5.5.4 Syntax: {verb}"  # RFC 5321 4.1.1.4, 4.1.1.5, 4.1.1.10; RFC 3207 4
        return await command(self, argument)

    async def helo(self, argument: str) -> str:
        """RFC 5321 4.1.1.1: SMTP without extensions."""
        self._greet("HELO", argument)
        return f"250 {self._listener.hostname}"

    async def ehlo(self, argument: str) -> str:
        """RFC 5321 4.1.1.1: list the extensions."""
        self._greet("EHLO", argument)
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
        if self.user is not None:
            offers.append(KEY_PARAMETER)
        return "\r\n".join((*(f"250-{offer}" for offer in offers), "250 DSN"))

    def _greet(self, verb: str, name: str) -> None:
        if not esmtp_parameters.is_client_name(name, odd=bool(self._listener.odd_domain)):
            raise esmtp_parameters.SmtpRejection(
                f"501 Syntax: {verb} your.host.name"
            )  # RFC 5321 4.1.1.1
        if not self._helo:
            self.progress()
        self._helo, self._extended = name, verb == "EHLO"
        self.reset()
        if self.filters is not None:
            self.filters.helo(name, self._tls, self.fact)

    async def noop(self, _argument: str) -> str:
        """RFC 5321 4.1.1.9."""
        return "250 2.0.0 Ok"

    async def vrfy(self, argument: str) -> str:
        """RFC 5321 4.1.1.6, 7.3. The reply does not disclose which addresses exist."""
        if not argument:
            return "501 5.5.4 Syntax: VRFY someone@example.com"  # RFC 5321 4.1.1.6
        return "252 2.1.5 Send mail to find out"  # RFC 5321 3.5.3, 7.3

    async def rset(self, _argument: str) -> str:
        """RFC 5321 4.1.1.5."""
        self.reset()
        if self.filters is not None:
            self.filters.abort()
        return "250 2.0.0 Ok"

    async def quit(self, _argument: str) -> str:
        """RFC 5321 4.1.1.10."""
        return self._end_with("221 2.0.0 Bye")  # RFC 5321 4.1.1.10

    async def starttls(self, _argument: str) -> str:
        """RFC 3207 4."""
        if self._tls:
            return "503 5.5.1 TLS is active already"  # RFC 3207 4.2
        if not self._listener.offers_tls:
            if hint := self._tls_hint():
                _log.warning("no STARTTLS on this port", client=self._client.ip, **hint)
            return "502 5.5.1 STARTTLS is not offered here"  # RFC 5321 4.2.4
        if self._authentication.login:
            return "503 5.5.1 STARTTLS comes before AUTH"  # RFC 3207 4.2: it would end the login
        # RFC 3207 4.2: discard what was sent before TLS; an attacker may have sent it.
        self._tls = await self.start_tls()
        self._helo, self._extended = "", False
        self.reset()
        return ""

    @property
    def _offers_auth(self) -> bool:
        listener = self._listener
        may_log_in = listener.settings.takes_auth and not listener.role.is_local
        return may_log_in and (bool(self._tls) or listener.offers_auth_in_clear)

    async def auth(self, argument: str) -> str:
        """RFC 4954 4."""
        authentication = self._authentication
        authentication.user = ""
        if not self._helo:
            return "503 5.5.1 Send EHLO first"  # RFC 5321 4.1.4
        if authentication.login:
            return "503 5.5.1 You are authenticated already"  # RFC 4954 4
        if self._mail is not None:
            return "503 5.5.1 Authenticate before MAIL"  # RFC 4954 4
        if not self._offers_auth:
            listener = self._listener
            if listener.settings.takes_auth and listener.offers_tls and not self._tls:
                return "538 5.7.11 Use STARTTLS before AUTH"  # RFC 4954 6
            return "502 5.5.1 AUTH is not offered here"  # RFC 5321 4.2.4
        try:
            reply = await authentication.authenticate(argument, ask=self.ask, pause=self.pause)
        finally:  # also if the client leaves instead of answering the challenge
            if reply_unsent := authentication.unsent:
                self._record(self._refused("AUTH", reply_unsent, ""), reply_unsent)
        login = self._authentication.login
        if login and (no_place := self.move_to_logins(login)):
            refused = self._refused("AUTH", no_place, "")
            raise CommandRefusedError(dataclasses.replace(refused, reason=RefusalReason.LIMIT))
        return self._end_with(reply) if authentication.is_exhausted else reply

    async def mail(self, argument: str) -> str:
        """RFC 5321 4.1.1.2. Checks AUTH, the sender address, SIZE and pressure."""
        if not self._helo:
            return "503 5.5.1 Send EHLO first"  # RFC 5321 4.1.4
        if self._mail is not None:
            return "503 5.5.1 MAIL was given already; send RSET to start again"  # RFC 5321 4.1.4
        if self._listener.role.must_log_in and not self._is_trusted:
            return "530 5.7.0 Authentication required"  # RFC 4954 6
        if self._listener.pressure.paused():
            return self._end_with(PAUSED)
        domain = self._listener.odd_domain if self.user is None else self._listener.hostname
        mail = esmtp_parameters.parse_mail(
            argument,
            extended=self._extended,
            tls=self._tls,
            odd_domain=domain,
            of_program=self.user is not None,
        )
        login, reverse_path = self._authentication.login, mail.envelope.reverse_path
        is_known = login or self.user is not None
        if is_known and (rejection := await self._client.sender_rejection(reverse_path)):
            return rejection
        if mail.size_bytes > (limit := self._listener.settings.max_message_size):
            return f"552 5.3.4 The message is larger than {limit} octets"  # RFC 1870 6.1
        memory_bytes = min(mail.size_bytes, self._listener.limits.large_bytes)
        if not self._listener.budget.has_room(self.key, memory_bytes):
            self._listener.budget.refuse()
            return "452 4.3.1 Too much mail at once, try again later"  # RFC 1870 6.1
        if short := self._listener.pressure.rejection(mail.size_bytes):
            return f"452 4.3.1 No mail is taken now: {short}; try again later"  # RFC 1870 6.1
        if not self._is_trusted:
            rejection = await self._client.sender_rejection(reverse_path)
            if rejection := rejection or self._beyond_limits():
                return rejection
        if self.filters is not None:
            mechanism = self._authentication.mechanism
            await self.filters.mail(reverse_path, argument, mechanism=mechanism, login=login)
        self._mail = mail
        self.progress()
        return "250 2.1.0 Ok"

    def _beyond_limits(self) -> str:
        """Return the reply to MAIL of a stranger beyond a limit; else count the message."""
        settings, client = self._listener.settings, client_of(self._client.ip)
        if 0 < settings.max_messages <= self._messages:
            return "421 4.7.0 Too many messages in one session, closing it"  # RFC 5321 7.8
        if settings.max_rate_per_client:
            reserved = self._listener.rates.message_of(client, settings.max_rate_per_client)
            if reserved is None:
                # RFC 5321 7.8
                return "450 4.7.1 Too many messages from your address, try again later"
            self._reserved = reserved
        return ""

    async def rcpt(self, argument: str) -> str:
        """RFC 5321 4.1.1.3. Enforces the limit of recipients per message: 452 4.5.3."""
        if self._mail is None:
            return "503 5.5.1 Send MAIL first"  # RFC 5321 4.1.4
        if self._chunks is not None:
            return _CHUNKS_BEGUN
        mail = self._mail
        path = esmtp_parameters.parse_rcpt(
            argument,
            extended=self._extended,
            smtputf8=mail.envelope.smtputf8,
            odd_domain=self._listener.odd_domain,
        )
        if path.address in self._forward_paths:
            return "250 2.1.5 Ok, named already"
        if len(self._forward_paths) >= self._listener.settings.max_recipients:
            # RFC 5321 4.5.3.1.8, 4.5.3.1.10
            return "452 4.5.3 Too many recipients, send the rest in another transaction"
        answer = await self._client.check_recipient(
            path.address, mail.envelope.reverse_path, mail.size_bytes, helo=self._helo
        )
        expanded = self._expanded + answer.expanded
        if expanded > EXPANDED_MAX:
            return "452 4.5.3 Too many recipients of aliases, send the rest in another transaction"
        if answer.reply:
            refused = self._refused("RCPT", answer.reply, argument)
            raise CommandRefusedError(dataclasses.replace(refused, reason=answer.reason))
        if self.filters is not None:
            await self.filters.rcpt(path.address, argument)
        self._forward_paths[path.address] = path
        self._expanded = expanded
        self.progress()
        return "250 2.1.5 Ok"

    async def data(self, _argument: str) -> str:
        """RFC 5321 4.1.1.4. The 250 is sent after the spool has committed the message."""
        if self._chunks is not None:
            return _CHUNKS_BEGUN
        if rejection := self._no_recipients:
            return rejection
        if not self._listener.budget.has_room(self.key, self._reserved_bytes):
            self._listener.budget.refuse()
            return ContentRejection.NO_ROOM
        if self.filters is not None:
            await self.filters.data()
        normalizes = self._listener.settings.bare_newline == "normalize"
        return await self._receive("DATA", DotFraming(normalizes=normalizes), self._new_content())

    async def bdat(self, argument: str) -> str:
        """RFC 3030 2. The octets of a refused chunk are discarded, and never read as commands.

        The chunks after a refused one get the same reply: the client sent them before it read the
        reply.
        """
        digits, _, last = argument.partition(" ")
        last = last.strip(" ").upper()
        if not (digits.isascii() and digits.isdigit()) or last not in ("", "LAST"):
            # RFC 3030 2; what follows may be text
            return self._end_with("501 5.5.4 Syntax: BDAT octets [LAST]; closing the connection")
        size_bytes, limit = int(digits), self._listener.settings.max_message_size
        if size_bytes > max(limit, DISCARDED_BYTES_MAX):
            return self._end_with(f"{ContentRejection.TOO_BIG}, closing the connection")
        if rejection := self._no_recipients:
            await self.read_content(ChunkFraming(size_bytes), None)
            return rejection
        begun, normalizes = self._chunks, self._listener.settings.bare_newline != "reject"
        self._chunks = begun or (self._new_content(), ChunkFraming(normalizes=normalizes))
        content, framing = self._chunks
        framing.begin(size_bytes, is_last=bool(last))
        if begun is not None and content.rejection is not None:
            await self.read_content(framing, None)
            if last:
                self.reset()
            await self.send(content.rejection)  # recorded with the first
            await self.pause(0)  # a long batch: let other sessions run
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
        """The reply to DATA or BDAT if the message has no recipient, else ""."""
        if self._mail is None:
            return "503 5.5.1 Send MAIL and RCPT first"  # RFC 5321 3.3
        return "" if self._forward_paths else "554 5.5.1 No valid recipients"  # RFC 5321 3.3

    def _new_content(self) -> ContentCollector:
        listener = self._listener
        return ContentCollector(
            size_max_bytes=listener.settings.max_message_size,
            limits=listener.limits,
            budget=listener.budget,
            key=self.key,
            arrival=self._client.new_body,
            reserved_bytes=self._reserved_bytes,
        )

    @property
    def _reserved_bytes(self) -> int:
        """For what the session reads ahead; under TLS this is in memory several times."""
        return self._listener.limits.reserved_bytes * (4 if self._tls else 1)

    async def _receive(self, verb: str, framing: Framing, content: ContentCollector) -> str:
        """Collect a content or a chunk; a complete message is offered to the owner."""
        assert self._mail is not None
        self.closing = True  # the end of the content is not known, so no command can be read
        try:
            self.closing = not await self.read_content(framing, content)
        finally:
            if self.closing:
                content.release()
        if self.closing:
            return ""
        if not framing.is_last and content.rejection is None:
            return framing.chunk_reply
        claims = self._claims(has_bare_lf=framing.has_bare_lf)
        offered = OfferedMail(self._mail, tuple(self._forward_paths.values()), claims)
        reserved, self._reserved = self._reserved, None
        if framing.is_last:
            self.reset()
        try:
            decision = await self._take(offered, content, verb=verb)
        except Exception:  # not if the client disconnects: the acceptance goes on
            if reserved is not None:
                reserved.give_back()
            raise
        self._messages += 1
        self._errors = self._idle_commands = 0
        await self.send(decision.reply)
        self._listener.crash.reached(CrashPoint.SMTP_REPLIED)
        return ""

    async def _take(
        self, offered: OfferedMail, content: ContentCollector, *, verb: str
    ) -> DataReply:
        """Return the reply to a content. Raises CommandRefusedError."""
        if content.rejection is not None:
            if self.filters is not None:
                self.filters.abort()
            decision = DataReply(content.rejection, milter=content.refused_by)
            subject = content.subject
        else:
            received = content.hand_over()
            decision = await self._client.accept(offered, received)
            if decision.queue_id:
                return decision
            subject = subject_in(memory_part(received.content))
        raise CommandRefusedError(
            RefusedCommand(
                command=verb,
                reply=decision.reply,
                sender=offered.mail.envelope.reverse_path,
                recipients=tuple([path.address for path in offered.paths]),
                subject=subject,
                rule=decision.rule or decision.milter,
                reason=RefusalReason.MILTER if decision.milter else decision.reason,
            )
        )

    def _claims(self, *, has_bare_lf: bool = False) -> SessionClaims:
        return SessionClaims(self._helo, self._extended, self._tls, has_bare_lf)

    def reset(self) -> None:
        """End the transaction, as RSET does."""
        self._mail = None
        if self._reserved is not None:
            self._reserved.give_back()
            self._reserved = None
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
        return self._end_with(reply)

    def _close_abusive(
        self, reply: str, verb: str, *, reason: RefusalReason | None = None, **hint: str
    ) -> str:
        _log.warning("not an SMTP client", client=self._client.ip, reply=reply, **hint)
        return self._close_rejected(verb, reply, reason=reason, is_logged=False)

    def _tls_hint(self) -> dict[str, str]:
        """Return the field of a log line about TLS, if there is a hint."""
        hint = self._listener.tls_hint
        return {} if hint is None else {"hint": hint()}

    def _end_with(self, reply: str) -> str:
        self.closing = True
        return reply


_COMMANDS: dict[str, Callable[[SmtpCommands, str], Awaitable[str]]] = {
    "HELO": SmtpCommands.helo,
    "EHLO": SmtpCommands.ehlo,
    "STARTTLS": SmtpCommands.starttls,
    "AUTH": SmtpCommands.auth,
    "MAIL": SmtpCommands.mail,
    "RCPT": SmtpCommands.rcpt,
    "DATA": SmtpCommands.data,
    "BDAT": SmtpCommands.bdat,
    "RSET": SmtpCommands.rset,
    "NOOP": SmtpCommands.noop,
    "VRFY": SmtpCommands.vrfy,
    "QUIT": SmtpCommands.quit,
}
_KNOWN_VERBS = frozenset({CONNECT, *_COMMANDS, *_NOT_OFFERED, *_HTTP_METHODS})  # in records
