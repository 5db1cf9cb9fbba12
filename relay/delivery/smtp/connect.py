"""Open an SMTP session: TCP or Unix socket, TLS, EHLO, AUTH.

aiosmtplib runs the session up to AUTH; then SmtpClientProtocol takes the transport over. Where
opportunistic TLS fails, a second connection is made without it (RFC 7435); where a host hangs up at
EHLO, one with HELO. A password is sent only over TLS, or to a loopback address of this machine. All
failures are ConnectError.
See RFC 5321 3.1 and 3.2, RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 8314 (implicit TLS),
RFC 2033 (LMTP), RFC 7672 (DANE).
"""

import asyncio
import dataclasses
import os
import socket
import ssl
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self, cast

import aiosmtplib
import msgspec
from aiosmtplib.protocol import SMTPProtocol
from msgspec import structs

from relay.base.message.address import lower_case
from relay.base.message.nexthop import HopKind
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Failed,
    Peer,
    Reply,
    SessionEvidence,
    SessionFailure,
    SmtpStage,
    classify,
    classify_session_failure,
)
from relay.base.message.tls_policy import (
    CONFIGURATION,
    MTA_STS,
    NEEDED,
    REQUIRETLS,
    TlsLevel,
    TlsPolicy,
)
from relay.base.phrases import hiding
from relay.base.socket_address import Address, ip_of, is_loopback
from relay.delivery.smtp.client_protocol import (
    REPLY_BYTES_MAX,
    REPLY_LINES_MAX,
    TOO_LONG,
    SmtpClientProtocol,
    has_code,
    joined,
    printable,
)
from relay.delivery.smtp.connection import Connection, Timeouts
from relay.delivery.smtp.tls import (
    certificate_matches,
    certificate_names,
    peer_chain,
    unverified_context,
    verifying_context,
)
from relay.delivery.smtp.transaction import Extensions
from relay.transport.routing.routes import Credentials, GraphOptions


class TokenError(Exception):
    """There is no token; the text says why, and what an operator can do. `error` is a code such as
    those of RFC 6749 5.2, "" while the token server does not answer.
    """

    def __init__(self, text: str, *, error: str = "") -> None:
        super().__init__(text)
        self.error = error


# Returns a token of a login for SMTP or GRAPH, another one than the one that a host has refused;
# "": none was. Raises TokenError.
GetToken = Callable[[Credentials, HopKind, str], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, and how."""

    host: str  # the name for reports
    address: str = ""  # an IP address
    port: int = 25  # at the address
    path: str = ""  # of a Unix socket, instead of address and port
    lmtp: bool = False  # RFC 2033
    tls: TlsPolicy = field(default_factory=TlsPolicy)  # what decide_tls() says
    login: Credentials | None = None  # None: there is no AUTH
    source_address: str = ""  # "": the system chooses
    tls_by: str = CONFIGURATION  # who demands the TLS level
    graph: GraphOptions | None = None  # Microsoft Graph, by HTTP(S); None: SMTP or LMTP
    is_mx: bool = False  # with the name of this relay, it is this relay: a loop

    @property
    def stays_here(self) -> bool:
        """Whether the connection stays on this machine, whatever the DNS answers.

        A name with a loopback address does not count: a forged answer could give it one.
        """
        if self.path:
            return True
        return is_loopback(self.address) and (
            self.host in ("", "localhost") or is_loopback(self.host)
        )

    @property
    def tls_name(self) -> str:
        """The name for SNI: whose TLSA records are used (RFC 7672 8.1), else the host's."""
        names = self.tls.names if self.tls.tlsa else ()
        return next(iter(names), self.host or self.address)

    def __str__(self) -> str:
        if self.path:
            return self.path
        return str(Address(self.address, self.port))


_READY, _COMPLETED = 220, 250
_AUTHENTICATED, _CHALLENGE = 235, 334  # RFC 4954 4
_WHY_MAX = 200
_QUIT_S = 5.0  # the reply is of no use
_NO_STARTTLS = "starttls-not-supported"
# X509_V_ERR_… of OpenSSL's x509_vfy.h: what RFC 8460 4.3.1 calls it
_CERTIFICATE_RESULTS = {
    10: "certificate-expired",
    **dict.fromkeys((2, 18, 19, 20, 21, 27), "certificate-not-trusted"),
}


class ConnectError(Exception):
    """No session with this target. Other hosts are tried before a Failed outcome counts.

    `tls_result` is the result type of RFC 8460 4.3 where TLS failed, else "".
    """

    def __init__(self, outcome: Deferred | Failed, stage: SmtpStage, tls_result: str = "") -> None:
        super().__init__(outcome.evidence.reply)
        self.outcome = outcome
        self.stage = stage
        is_tls = stage is SmtpStage.STARTTLS
        self.tls_result = tls_result or ("validation-failure" if is_tls else "")

    @classmethod
    def broken(cls, stage: SmtpStage, failure: SessionFailure, text: str, *, peer: Peer) -> Self:
        """Return the error of a session that broke before a transaction."""
        outcome = classify_session_failure(stage, failure, text, peer=peer)
        assert isinstance(outcome, Deferred)  # only after a final dot it is indeterminate
        return cls(outcome, stage)


async def _no_token(_login: Credentials, _use: HopKind, _refused: str) -> str:
    raise TokenError("there are no tokens here")


async def connect(
    target: Target,
    *,
    ehlo_name: str,
    timeouts: Timeouts,
    real_s: Callable[[], float] = lambda: 0.0,
    get_token: GetToken = _no_token,
) -> Connection:
    """Open a session with `target`; `real_s` measures how long that takes. Raises ConnectError."""
    stopwatch = _Stopwatch(target.tls.level, real_s)
    asked = target
    if asked.tls.testing:
        verified = structs.replace(asked.tls, level="verify", testing=False)
        target = dataclasses.replace(asked, tls=verified)
    ends_s = asyncio.get_running_loop().time() + timeouts.session_s  # real time: a peer
    knows_ehlo = True
    while True:
        setup = _SessionSetup(target, ehlo_name, timeouts, stopwatch, get_token, knows_ehlo)
        try:
            return await setup.session(ends_s)
        except ConnectError as error:
            if asked.tls.testing and not stopwatch.mismatch and (error.tls_result or setup.hung_up):
                stopwatch.mismatch, stopwatch.verified = error.tls_result or _NO_STARTTLS, "none"
                lax = structs.replace(asked.tls, testing=False)
                target = dataclasses.replace(asked, tls=lax)
            elif error.stage is SmtpStage.STARTTLS and target.tls.level == "opportunistic":
                target = dataclasses.replace(target, tls=TlsPolicy("none"))  # RFC 7435
            elif knows_ehlo and setup.hung_up and target.tls.level in ("none", "opportunistic"):
                knows_ehlo = False
            else:
                raise


class _TolerantProtocol(SMTPProtocol):
    """Skips lines without a code, as ReplyParser does: the library never sends two commands at
    once. The limits of octets and lines in a reply are also ReplyParser's.
    """

    def _read_response_from_buffer(self) -> aiosmtplib.SMTPResponse | None:
        received = bytes(self._buffer)
        *lines, rest = received.split(b"\n")
        if len(received) > REPLY_BYTES_MAX or len(lines) > REPLY_LINES_MAX:
            raise aiosmtplib.SMTPResponseException(-1, TOO_LONG)
        kept = [line for line in lines if has_code(line)]
        self._buffer[:] = b"\n".join([*kept, rest])
        response = super()._read_response_from_buffer()
        if response is None:
            self._buffer[:] = received
        return response


class _Stopwatch:
    """What becomes the evidence of a session; where opportunistic TLS fails, of both tries."""

    def __init__(self, level: TlsLevel, real_s: Callable[[], float]) -> None:
        self.verified = "none"
        self.mismatch = ""
        self._level = level
        self._real_s = real_s
        self._spent_s = [0.0, 0.0]  # without and with TLS
        self._in_tls = False
        self._began_s: float | None = None

    def begin(self, *, in_tls: bool = False) -> None:
        """Begin to connect, or to set up TLS."""
        self.end()
        self._in_tls = in_tls
        self._began_s = self._real_s()

    def end(self) -> None:
        """End what was begun, if it has not ended."""
        if self._began_s is not None:
            self._spent_s[self._in_tls] += self._real_s() - self._began_s
            self._began_s = None

    def evidence(self) -> SessionEvidence:
        """Return the evidence; what was begun ends."""
        self.end()
        connect_ms, tls_ms = (round(1000 * spent_s, 1) for spent_s in self._spent_s)
        return SessionEvidence(self.verified, self._level, connect_ms, tls_ms, self.mismatch)


@dataclass(eq=False, repr=False)
class _SessionSetup:
    """One session being set up; `_stage` is the step that a failure belongs to."""

    target: Target
    ehlo_name: str
    timeouts: Timeouts
    stopwatch: _Stopwatch
    get_token: GetToken
    knows_ehlo: bool
    hung_up: bool = False  # the host closed the connection in place of a reply to EHLO

    def __post_init__(self) -> None:
        self._stage = SmtpStage.CONNECT
        login, self._secrets = self.target.login, list[str]()
        if login is not None and login.password:
            texts = (login.password, f"\0{login.user}\0{login.password}")  # AUTH LOGIN, PLAIN
            self._secrets += (login.password, *(b64encode(t.encode()).decode() for t in texts))
        self._client = aiosmtplib.SMTP(
            local_hostname=self.ehlo_name,
            timeout=self.timeouts.command_s,
            start_tls=False,
            tls_context=self._context(),
        )

    def _context(self) -> ssl.SSLContext:
        """Return the TLS context. Raises ConnectError if the CA file cannot be read."""
        target = self.target
        if target.tls.level != "verify":
            return unverified_context()
        try:
            return verifying_context(target.tls.ca, target.tls.ca_digest)
        except OSError as error:
            is_read = isinstance(error, ssl.SSLError)
            why = "it holds no certificates" if is_read else reason(error)
            raise self._no_tls(f"the CA file {target.tls.ca} cannot be used: {why}") from error

    async def session(self, ends_s: float) -> Connection:
        """Return the session, before the loop's time `ends_s`. Raises ConnectError."""
        try:
            async with asyncio.timeout_at(ends_s):  # real time: a peer
                return await self._session()
        except TimeoutError:
            text = f"no session within {self.timeouts.session_s:g} s"
            text = f"{self.target}: {self._stage}: {text}"
            raise self._trouble(SessionFailure.SLOW, text) from None

    async def _session(self) -> Connection:
        """Raises ConnectError."""
        try:
            token = await self._token()  # without one there is no need to connect
            await self._open()
            self._check_certificate()
            await self._hello()
            await self._secure()
            await self._check_requiretls()
            await self._log_in(token)
            return self._take_over()
        except BaseException as error:
            self._client.close()
            if isinstance(error, aiosmtplib.SMTPResponseException):
                raise self._rejected(error) from error
            # ValueError: the library's decoding of invalid data, for example base64.
            if isinstance(error, aiosmtplib.SMTPException | OSError | ValueError):
                raise self._broken(error) from error
            raise

    async def _open(self) -> None:
        """Connect by TCP or Unix socket, with implicit TLS if required, and read the banner."""
        target, loop = self.target, asyncio.get_running_loop()
        protocol = _TolerantProtocol(loop)
        tls: dict[str, Any] = {}
        if target.tls.implicit:
            tls = {
                "ssl": self._client.tls_context,
                "server_hostname": target.tls_name,
                "ssl_handshake_timeout": self.timeouts.command_s,
            }
        self.stopwatch.begin()
        if target.path:
            opening = loop.create_unix_connection(lambda: protocol, target.path, **tls)
        else:
            sock = await _dialled(target, self.timeouts.connect_s)
            opening = loop.create_connection(lambda: protocol, sock=sock, **tls)
        if tls:
            self.stopwatch.begin(in_tls=True)
            self._stage = SmtpStage.STARTTLS
        self._client.transport, self._client.protocol = await opening
        self._stage = SmtpStage.BANNER
        banner = await protocol.read_response(self.timeouts.command_s)
        if banner.code != _READY:
            raise aiosmtplib.SMTPResponseException(banner.code, banner.message)
        self._check_name(banner)
        self.stopwatch.end()

    async def _hello(self) -> None:
        """Send EHLO, or HELO if the host does not know EHLO. LMTP has LHLO only (RFC 2033 4.1)."""
        self._stage = SmtpStage.EHLO
        if self.target.lmtp:
            self._stage = SmtpStage.LHLO
            answer = await self._client.execute_command(b"LHLO", self.ehlo_name.encode())
            if answer.code != _COMPLETED:
                raise aiosmtplib.SMTPHeloError(answer.code, answer.message)
            self._client.last_ehlo_response = answer
            return
        is_secure = self._tls() is not None
        try:
            if self.knows_ehlo:
                self._check_name(await self._client.ehlo())
                return
        except aiosmtplib.SMTPHeloError as error:
            if error.code // 100 != 5:
                raise
        except aiosmtplib.SMTPServerDisconnected:
            self.hung_up = not is_secure
            raise
        self._check_name(await self._client.helo())

    def _check_name(self, reply: aiosmtplib.SMTPResponse) -> None:
        """Check that an MX host does not name itself as this relay does: then this relay is sending
        to itself by another address. Raises ConnectError.
        """
        name, *_ = reply.message.split(None, 1) or [""]
        if self.target.is_mx and lower_case(name.rstrip(".")) == self.ehlo_name.lower():
            text = f"{self.target}: the host calls itself {name}, as this relay: mail loops back"
            # RFC 3463 3.5
            outcome = Failed(self._place_of_failure().evidence("5.4.6", text))
            raise ConnectError(outcome, self._stage)

    async def _secure(self) -> None:
        """STARTTLS as the level says, then EHLO again (RFC 3207 4.2)."""
        target, level = self.target, self.target.tls.level
        if level == "none" or target.tls.implicit:
            return
        if not self._client.supports_extension("starttls"):
            if level == "opportunistic":
                return
            why = "a password is not sent without TLS" if target.login else "TLS is required"
            text = f"{target}: the host does not offer STARTTLS, and {why}"
            raise self._no_tls(text, "4.7.4", result=_NO_STARTTLS)
        self._stage = SmtpStage.STARTTLS
        self.stopwatch.begin(in_tls=True)
        await self._client.starttls(server_hostname=target.tls_name)
        self.stopwatch.end()
        self._check_certificate()
        await self._hello()

    def _check_certificate(self) -> None:
        """Compare the certificate with what the policy demands. Raises ConnectError."""
        target, tls = self.target, self._tls()
        if tls is None:
            return
        names = target.tls.for_host(target.host or target.address).names
        if target.tls.tlsa:
            from relay.delivery.smtp.dane import dane_mismatch  # noqa: PLC0415 -- a large library

            mismatch = dane_mismatch(target.tls.tlsa, peer_chain(tls), names)
            if mismatch is not None:
                text = f"{target}: {printable(mismatch.text.encode('utf-8', 'replace'))}"
                raise self._no_tls(text, result=mismatch.result, peer=self._peer())
            self.stopwatch.verified = "dane"
        if target.tls.level != "verify":
            return
        self.stopwatch.verified = "chain"  # by the context, in the handshake
        certificate = tls.getpeercert() or {}
        if not any(certificate_matches(certificate, name) for name in names):
            owner = printable(certificate_names(certificate).encode("utf-8", "replace"))
            expected = " or ".join(
                name if ip_of(name) is None else f"the address {name}" for name in names
            )
            raise self._no_tls(
                f"{target}: the certificate is for {owner}, not {expected}",
                advice="correct the certificate, or the route's next_hop",
                result="certificate-host-mismatch",
                peer=self._peer(),
            )
        self.stopwatch.verified = "name"

    async def _check_requiretls(self) -> None:
        """Check that the host takes mail with REQUIRETLS, if this is for such (RFC 8689 4.2.1)."""
        if not self.target.tls.requiretls or self._client.supports_extension("requiretls"):
            return
        peer = self._peer()
        with suppress(aiosmtplib.SMTPException, OSError):
            await self._client.quit(timeout=_QUIT_S)  # real time: a peer
        text = f"{self.target}: the host does not offer REQUIRETLS, which the message demands"
        raise ConnectError(
            Failed(peer.evidence(NEEDED, text)), SmtpStage.EHLO, "requiretls-not-supported"
        )

    async def _token(self) -> str:
        """Return a token for the login, "" for one by password. Raises ConnectError."""
        login = self.target.login
        if login is None or not login.oauth:
            return ""
        try:
            return await self.get_token(login, HopKind.SMTP, "")
        except TokenError as error:
            self._stage = SmtpStage.AUTH
            raise self._trouble(SessionFailure.LOST, str(error)) from None

    async def _log_in(self, token: str) -> None:
        target = self.target
        if target.login is None:
            return
        self._stage = SmtpStage.AUTH
        if self._tls() is None and not target.stays_here:
            raise self._no_tls(f"{target}: a password is not sent without TLS", "4.7.4")
        if not self._client.supports_extension("auth"):
            text = f"{target}: the host offers no AUTH, and the route has a login for it"
            raise self._trouble(SessionFailure.LOST, text)
        if token:
            await self._log_in_by_token(target.login, token)
        else:
            await self._client.login(target.login.user, target.login.password)

    async def _log_in_by_token(self, login: Credentials, token: str, *, again: bool = True) -> None:
        """Log in by AUTH XOAUTH2 (developers.google.com/workspace/gmail/imap/xoauth2-protocol);
        `again` is an attempt with a second token.

        A refusal is a 334 with its reason as JSON and, after an empty line, a 535; or the 535 at
        once. It stays the host's reply where no second token is to be had, or the host hangs up.
        """
        sasl = b64encode(f"user={login.user}\1auth=Bearer {token}\1\1".encode())
        self._secrets += (token, sasl.decode())
        answer, why = await self._client.execute_command(b"AUTH", b"XOAUTH2", sasl), ""
        if answer.code == _CHALLENGE:
            with suppress(ValueError, AttributeError, RecursionError):
                said = msgspec.json.decode(b64decode(answer.message)).items()
                why = f" ({', '.join(f'{key} {value}' for key, value in said)})"[:_WHY_MAX]
            answer = await self._client.execute_command(b"")
        words = f"{answer.message}{why}; relay oauth test {login.oauth} shows what the token is for"
        if answer.code == _AUTHENTICATED:
            return
        if answer.code // 100 != 5 or not again:
            raise aiosmtplib.SMTPResponseException(answer.code, words)
        try:
            second = await self.get_token(login, HopKind.SMTP, token)
            await self._log_in_by_token(login, second, again=False)
        except TokenError as error:
            raise aiosmtplib.SMTPResponseException(answer.code, f"{words}; {error}") from None
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError):
            raise aiosmtplib.SMTPResponseException(answer.code, words) from None

    def _take_over(self) -> Connection:
        """Install our protocol on the transport; the library must have no unread bytes."""
        protocol, transport = self._client.protocol, self._client.transport
        if protocol is None or transport is None or transport.is_closing():
            raise aiosmtplib.SMTPServerDisconnected("the host closed the connection")
        if protocol._buffer:  # noqa: SLF001  (the library offers no other way to see surplus bytes)
            text = "the peer sent data before a command"
            raise self._trouble(SessionFailure.PROTOCOL, text, peer=self._peer())
        in_tls = self._tls() is not None
        extensions = Extensions.offered(self._client.esmtp_extensions, in_tls=in_tls)
        stream = cast("asyncio.Transport", transport)
        peer = structs.replace(self._peer(), offers_dsn=extensions.dsn, lmtp=self.target.lmtp)
        wire = SmtpClientProtocol(stream, takes_text=not extensions.pipelining)
        stream.set_protocol(wire)
        return Connection(wire, peer=peer, extensions=extensions, timeouts=self.timeouts)

    def _tls(self) -> ssl.SSLObject | None:
        transport = self._client.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        return cast("ssl.SSLObject | None", tls)

    def _peer(self) -> Peer:
        tls, peer = self._tls(), self._place_of_failure()
        if tls is None:
            return peer
        suite = tls.cipher()
        return structs.replace(peer, tls=tls.version() or "", cipher=suite[0] if suite else "")

    def _no_tls(
        self,
        text: str,
        status: str = "4.7.5",
        *,
        advice: str = "",
        result: str = "",
        peer: Peer | None = None,
    ) -> ConnectError:
        """Return the error for TLS that is missing, or not what this target requires. A host that
        answered with a `result` takes no mail with REQUIRETLS.
        """
        if self._demand:
            status, advice = "4.7.5", self._demand
        text = f"{text}; {advice}" if advice else text
        peer = peer or self._place_of_failure()
        outcome: Deferred | Failed = Deferred(peer.evidence(status, text), DeferralClass.TLS)
        if self.target.tls.requiretls and result:
            outcome = Failed(peer.evidence(NEEDED, text))
        return ConnectError(outcome, SmtpStage.STARTTLS, result)

    def _place_of_failure(self) -> Peer:
        """Return the host of a session that ended before TLS and EHLO were complete."""
        evidence = self.stopwatch.evidence()
        hide = hiding(*self._secrets)
        return Peer(self.target.host, address=str(self.target), session=evidence, hide=hide)

    def _trouble(
        self, trouble: SessionFailure, text: str, *, peer: Peer | None = None
    ) -> ConnectError:
        peer = peer or self._place_of_failure()
        return ConnectError.broken(self._stage, trouble, text, peer=peer)

    def _rejected(self, error: aiosmtplib.SMTPResponseException) -> ConnectError:
        """The error for a reply; the library's code for an invalid reply is -1."""
        text = joined(
            [printable(line.encode("utf-8", "replace")) for line in error.message.split("\n")]
        )
        reply, peer = Reply(error.code, text), self._place_of_failure()
        is_reply = error.code > 0
        if is_reply and self._is_refused_tls:
            return self._no_tls(f"{self.target}: {self._stage}: {reply}")
        outcome = classify(self._stage, reply, peer) if is_reply else None
        if outcome is None:
            text = f"{reply if is_reply else text} is no answer to {self._stage}"
            return self._trouble(SessionFailure.PROTOCOL, text, peer=peer)
        assert isinstance(outcome, Deferred | Failed)
        return ConnectError(outcome, self._stage)

    def _broken(self, error: Exception) -> ConnectError:
        """The error for a connection that broke, or data that cannot be read."""
        cause = error if isinstance(error, ssl.SSLError) else error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return self._no_tls(
                f"{self.target}: the certificate is refused: {cause.verify_message}",
                advice="correct the certificate, or name its CA in the route's ca",
                result=_CERTIFICATE_RESULTS.get(cause.verify_code, "validation-failure"),
            )
        if isinstance(cause, ssl.SSLError):
            self._stage = SmtpStage.STARTTLS
        trouble = SessionFailure.LOST
        if isinstance(error, TimeoutError):
            trouble = SessionFailure.TIMEOUT
        elif isinstance(error, ValueError) and not isinstance(error, OSError):
            trouble = SessionFailure.PROTOCOL
        # the address and, once connected, the command without a reply
        place = f"{self.target}" + (f": {self._stage}" if self._stage != SmtpStage.CONNECT else "")
        said = error.__cause__ if error.__cause__ and str(error.__cause__) else error
        text = f"{place}: {reason(said)}"
        return self._no_tls(text) if self._is_refused_tls else self._trouble(trouble, text)

    @property
    def _is_refused_tls(self) -> bool:
        """Whether a failure is one of TLS that the DNS or the message demands."""
        return self._stage is SmtpStage.STARTTLS and bool(self._demand)

    @property
    def _demand(self) -> str:
        """What in the DNS, or the message, demands TLS."""
        if self.target.tls_by == REQUIRETLS:
            return "the message demands TLS with a verified host (REQUIRETLS)"
        if self.target.tls.level == "dane":
            return "the TLSA records of the host demand TLS (DANE)"
        if self.target.tls_by == MTA_STS:
            return "the MTA-STS policy of the domain demands TLS and its name"
        return ""


def reason(error: BaseException) -> str:
    """Return the error of a connection as a short text, such as "connection refused"."""
    if isinstance(error, ssl.SSLError):
        said = getattr(error, "verify_message", "") or (error.reason or "failed").replace("_", " ")
        return f"TLS: {said.lower()}"
    if isinstance(error, OSError) and error.errno:
        # Those of getaddrinfo() are negative and have texts of their own (RFC 3493, section 6.1).
        return str(os.strerror(error.errno) if error.errno > 0 else error.strerror).lower()
    return str(error) or type(error).__name__


async def _dialled(target: Target, timeout_s: float) -> socket.socket:
    """Return a socket connected to the target's address. Raises OSError."""
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named; without it a final dot may be delayed.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        if target.source_address:
            sock.bind((target.source_address, 0))
        async with asyncio.timeout(timeout_s):  # real time: a peer
            await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
    except TimeoutError:
        sock.close()
        raise TimeoutError(f"no connection within {timeout_s:g} s") from None
    except BaseException:
        sock.close()
        raise
    return sock
