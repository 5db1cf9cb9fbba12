"""A session with Microsoft Graph, on which transactions follow each other.

A transaction is a request for up to 500 recipients (`request`). The connection is HTTPS with a
verified host name; in the clear it goes to a loopback address only. A connection that the host has
closed between two requests is opened again.
"""

import ssl
from collections.abc import Callable

from msgspec.structs import replace

from relay.base.message.nexthop import HTTPS_PORT, HopKind
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Failed,
    Peer,
    SessionEvidence,
    SessionFailure,
    SmtpStage,
)
from relay.delivery.graph.request import RECIPIENTS_MAX, GraphTransaction
from relay.delivery.host_selection import HostSession
from relay.delivery.http_connection import HttpAnswer, HttpConnection, HttpError, Proxy, open_http
from relay.delivery.smtp.connect import ConnectError, GetToken, Target, TokenError, reason
from relay.delivery.smtp.connection import BeforeDot, OnReplies, Timeouts
from relay.delivery.smtp.tls import certificate_matches, certificate_names, verifying_context
from relay.delivery.smtp.transaction import (
    Extensions,
    Transaction,
    TransactionResult,
    wrong_address,
)

_UNAUTHORIZED = 401
_ANSWER_BYTES_MAX = 1024 * 1024
_ANSWER_BYTES_PER_OCTET = 6  # a draft is answered with its text, in JSON


async def open_graph(
    target: Target,
    *,
    get_token: GetToken,
    proxy: Proxy | None,
    timeouts: Timeouts,
    real_s: Callable[[], float],
) -> HostSession:
    """Get a token and connect to `target`. Raises ConnectError."""
    host = _GraphHost(target, get_token, proxy, timeouts, real_s)
    await host.renew_token()
    return GraphConnection(host, *await host.connect())


class _GraphHost:
    """The host of a session: it opens connections, and gets tokens."""

    def __init__(
        self,
        target: Target,
        get_token: GetToken,
        proxy: Proxy | None,
        timeouts: Timeouts,
        real_s: Callable[[], float],
    ) -> None:
        self.target, self.timeouts = target, timeouts
        self.token = ""
        self._get_token, self._real_s = get_token, real_s
        self._proxy = None if target.stays_here else proxy
        evidence = SessionEvidence("none", target.tls.level)
        self._peer = Peer(target.host, address=str(target), session=evidence)

    async def renew_token(self) -> None:
        """Get another token than the one so far, which was refused. Raises ConnectError."""
        login = self.target.login
        assert login is not None  # a route to Graph has one
        try:
            self.token = await self._get_token(login, HopKind.GRAPH, self.token)
            if not (self.token.isascii() and self.token.isprintable()):
                raise TokenError("the token server gave what is no token")  # noqa: TRY301
        except TokenError as error:
            evidence = self._peer.evidence("4.7.8", str(error))
            raise ConnectError(Deferred(evidence, DeferralClass.AUTH), SmtpStage.AUTH) from None

    async def connect(self) -> tuple[HttpConnection, Peer]:
        """Connect, and check whose certificate it is. Raises ConnectError."""
        target, port, began_s = self.target, f":{self.target.port}", self._real_s()
        context = self._context()
        name = f"[{target.host}]" if ":" in target.host else target.host
        try:
            http = await open_http(
                self._proxy.host if self._proxy is not None else target.address,
                target.port,
                authority=name if target.port == HTTPS_PORT else name + port,
                host=target.host,
                context=context,
                proxy=self._proxy,
                timeout_s=self.timeouts.connect_s,
            )
        except HttpError as error:
            if error.untrusted:
                advice = "correct the certificate, or name its CA in the route's ca"
                raise self._no_tls(f"{error}; {advice}") from None
            failure = SessionFailure.TIMEOUT if error.timed_out else SessionFailure.LOST
            raise ConnectError.broken(
                SmtpStage.CONNECT, failure, str(error), peer=self._peer
            ) from None
        verified = "none" if http.tls is None else "name"
        if http.tls is not None:
            self._check_certificate(http, http.tls)
        connect_ms = round(1000 * (self._real_s() - began_s), 1)
        return http, Peer(
            target.host,
            tls=(http.tls.version() if http.tls else None) or "",
            address=str(target),
            cipher=((http.tls.cipher() if http.tls else None) or ("",))[0],
            session=SessionEvidence(verified, target.tls.level, connect_ms),
        )

    def _context(self) -> ssl.SSLContext | None:
        tls = self.target.tls
        if tls.level == "verify":
            try:
                return verifying_context(tls.ca, tls.ca_digest)
            except OSError as error:
                is_read = isinstance(error, ssl.SSLError)
                why = "it holds no certificates" if is_read else reason(error)
                raise self._no_tls(f"the CA file {tls.ca} cannot be used: {why}") from None
        if not self.target.stays_here:
            raise self._no_tls(f"{self.target}: a token is not sent without TLS")
        return None

    def _check_certificate(self, http: HttpConnection, tls: ssl.SSLObject) -> None:
        certificate = tls.getpeercert() or {}
        if not certificate_matches(certificate, self.target.host):
            http.close()
            text = f"the certificate is for {certificate_names(certificate)}"
            raise self._no_tls(f"{self.target}: {text}, not {self.target.host}")

    def _no_tls(self, text: str) -> ConnectError:
        outcome = Deferred(self._peer.evidence("4.7.5", text), DeferralClass.TLS)
        return ConnectError(outcome, SmtpStage.STARTTLS)


class GraphConnection:
    """A HostSession with Microsoft Graph."""

    is_worn = False

    def __init__(self, host: _GraphHost, http: HttpConnection, peer: Peer) -> None:
        self.peer = peer
        self.transactions = 0
        # the octets stay as they are
        self.extensions = Extensions(eight_bit=True, smtputf8=True, recipients_max=RECIPIENTS_MAX)
        self._host, self._http = host, http
        self._busy = False

    @property
    def is_open(self) -> bool:
        """Whether it can take a transaction. False once the host has closed it."""
        return self._http.is_open and not self._busy

    async def transact(
        self,
        transaction: Transaction,
        *,
        before_dot: BeforeDot | None = None,
        on_replies: OnReplies | None = None,  # noqa: ARG002 - of LMTP
    ) -> TransactionResult:
        """Send one message, or ask what became of it; recipients beyond one request are `again`.
        `before_dot` is awaited before each request that makes or sends something.
        """
        assert not self._busy, "one transaction at a time"
        target, everyone = self._host.target, range(len(transaction.recipients))
        assert target.graph is not None
        assert target.login is not None
        if wrong := wrong_address(transaction, self.extensions):
            evidence = self.peer.evidence(wrong.status, f"{wrong.status} {wrong.text}")
            return TransactionResult(dict.fromkeys(everyone, Failed(evidence)), reusable=True)
        work = GraphTransaction(
            transaction,
            target.graph,
            mailbox=target.login.user,
            peer=self.peer,
            ask=self._ask,
            before_post=before_dot,
        )
        self._busy = True
        try:
            outcomes = await work.run()
        finally:
            self._busy = False
        self.transactions += 1
        again = tuple(index for index in everyone if index not in outcomes)
        return TransactionResult(outcomes, again, reusable=self.is_open)

    async def _ask(
        self, method: str, path: str, body: bytes = b"", *, before_post: BeforeDot | None = None
    ) -> HttpAnswer:
        """Make one request; with another token if this one is refused. Raises HttpError,
        ConnectError, and what `before_post` raises.
        """
        host, size = self._host, len(body)
        for is_last in (False, True):
            if not self._http.is_open:
                self._http.close()
                self._http, _ = await host.connect()
            if before_post is not None:
                await before_post()
            fields = [("Authorization", f"Bearer {host.token}"), ("Prefer", 'IdType="ImmutableId"')]
            if body:
                fields.append(("Content-Type", "text/plain"))
            answer = await self._http.request(
                method,
                f"/v1.0/users/{path}",
                fields=fields,
                body=body,
                timeout_s=host.timeouts.command_s if method == "GET" else host.timeouts.dot_s,
                answer_bytes_max=_ANSWER_BYTES_MAX + _ANSWER_BYTES_PER_OCTET * size,
            )
            if answer.status != _UNAUTHORIZED or is_last:
                break
            await host.renew_token()
        # whatever the host repeats, its words are shown
        return replace(answer, body=answer.body.replace(host.token.encode(), b"..."))

    async def quit(self) -> None:
        """Close it: HTTP has no word for the end."""
        self.close()

    def close(self) -> None:
        """Close it at once."""
        self._http.close()
