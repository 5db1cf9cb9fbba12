"""Asks token servers, and holds the access tokens of the [[oauth]] clients.

All that wait for a token share one request, and a client has one at a time. A token is renewed some
minutes before its end, in the background, and serves until then if the token server is away; one
that lives for seconds serves one message. A token that has ended, or is due for renewal, is not one
that a host has refused. After a failure the server is asked
again only later, or when the file with the secret has changed. The life of a token is measured on
the monotonic clock. The settings in force decide at each call.

A refresh token is in state_dir/oauth, in a file with the name of the client. A new one that the
server gives is durable there before its access token is used: the old one may have ended.
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from math import inf
from urllib.parse import urlencode
from uuid import uuid4

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.files import fsync_path, read_key_file, replace_file
from relay.base.message.nexthop import HopKind
from relay.base.message.web_url import read_url
from relay.base.observe.logs import get_logger
from relay.base.phrases import hiding, named
from relay.base.settings.tree import SENDER, OAuthClient, Route, Settings
from relay.base.settings.validation import as_fallback
from relay.base.task_set import TaskSet
from relay.delivery.http_connection import HttpError, Proxy, open_http
from relay.delivery.oauth import grants
from relay.delivery.smtp.connect import TokenError, reason
from relay.transport.routing.routes import Credentials

_CONNECT_S, _ANSWER_S = 10.0, 30.0
_ANSWER_BYTES_MAX = 64 * 1024  # tokens of Entra have up to 5 KB
_TOKENS_MAX = 4096  # of service accounts: one for each mailbox
_RENEWED_BEFORE_S, _RENEWED_AFTER_PART = 300.0, 0.8  # the later of the two
_LAST_S = 5.0  # of a token's life: what wants it waits for the next one
_ONE_MESSAGE_S = 10.0  # a token that lives for less serves one message
_AGAIN_S, _AGAIN_S_MAX = 15.0, 60.0  # after a failure; an operator who repairs it waits for it
_REFUSED_S = 60.0  # between tokens that replace refused ones
_IMPAIRED_S = 3600.0  # of a failure: mail is tried again before

_log = get_logger("oauth")


class TokenServer:
    """The token server of a client. HTTPS is verified against the system's store, or the `ca` of
    the routes that name the client.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        """Raises TokenError if there is no [[oauth]] of this name."""
        client = next((client for client in settings.oauth if client.name == name), None)
        if client is None:
            raise TokenError(f'there is no [[oauth]] "{name}"', error="invalid_client")
        self.client: OAuthClient = client
        self.secret_file = grants.key_file(client)
        if grants.is_delegated(client):
            self.secret_file = settings.state_dir / "oauth" / name
        self.proxy = Proxy.parse(settings.delivery.proxy)
        ways = [
            (way, way.auth)
            for route in settings.route
            for way in (route, as_fallback(route))
            if way.auth and way.auth.oauth == name and way.next_hop
        ]
        # the last of a mailbox decides: what may be read there counts where drafts are made
        routes = sorted(ways, key=lambda way: way[0].confirm is not False)
        self._cas = dict.fromkeys(route.ca for route, _ in routes if route.ca)
        uses: dict[tuple[HopKind, str], Route | None] = {
            (_use(route.next_hop), auth.user if auth.user != SENDER else ""): route
            for route, auth in routes
        }
        # what the tokens are for, with the mailbox ("": the sender's, or none): a route
        self.uses = uses or {(HopKind.SMTP, ""): None}

    @property
    def stamp_ns(self) -> int:
        """When the file with the secret was last changed by a person; 0 without one."""
        try:
            return self.secret_file.stat().st_mtime_ns if self.secret_file is not None else 0
        except OSError:
            return 0

    def form(self, use: HopKind, mailbox: str, now_s: int) -> dict[str, str]:
        """Return what asks for a token. Raises TokenError if the file with the secret is missing or
        something else.
        """
        client, secret, is_person = self.client, b"", grants.is_delegated(self.client)
        try:
            if self.secret_file is not None:
                expected = f"that of relay oauth login {client.name}" if is_person else "a key"
                secret = read_key_file(self.secret_file, expected=expected, is_secret=False)
            text, jti = secret.decode().strip(), str(uuid4())
            return grants.grant_form(client, use, mailbox, secret=text, now_s=now_s, jti=jti)
        except ValueError as error:
            code = "invalid_grant" if is_person else "invalid_client"
            raise TokenError(f"{self.secret_file}: {error}", error=code) from None

    async def token(self, use: HopKind, mailbox: str, now_s: int) -> grants.TokenAnswer:
        """Ask for a token; `now_s` is wall time. Raises TokenError."""
        form = self.form(use, mailbox, now_s)
        answer = await self.ask(form)
        if answer.refresh_token and "refresh_token" in form:
            await asyncio.to_thread(self.store, answer.refresh_token, form["refresh_token"])
        return answer

    async def ask(self, form: Mapping[str, str], url: str = "") -> grants.TokenAnswer:
        """Return the answer to a form, by default of the token endpoint. Raises TokenError."""
        place = read_url(url or grants.token_url(self.client), schemes=("https", "http"))
        is_tls = place.scheme == "https"  # the settings have the other only at loopback addresses
        try:
            connection = await open_http(
                place.host,
                place.port,
                authority=place.authority,
                host=place.host,
                context=self._context() if is_tls else None,
                proxy=self.proxy if is_tls else None,
                timeout_s=_CONNECT_S,
            )
            with closing(connection):
                answer = await connection.request(
                    "POST",
                    place.target,
                    fields=[("Content-Type", "application/x-www-form-urlencoded")],
                    body=urlencode(form).encode(),
                    timeout_s=_ANSWER_S,
                    answer_bytes_max=_ANSWER_BYTES_MAX,
                )
        except (HttpError, OSError) as error:
            said = grants.hide_form(form)(reason(error))
            raise TokenError(f"the token server does not answer: {said}") from None
        return grants.read_answer(answer.status, answer.body, client=self.client, form=form)

    def _context(self) -> ssl.SSLContext:
        """Raises OSError for a file without certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it verifies chain and name
        for file in self._cas:
            context.load_verify_locations(cafile=file)
        if not self._cas:
            context.load_default_certs()
        return context

    def store(self, refresh_token: str, before: str = "") -> None:
        """Keep a refresh token durably, in place of `before`: if that is no longer there, a person
        has signed in meanwhile. Blocks. Raises TokenError.
        """
        assert self.secret_file is not None
        file, stamp_ns = self.secret_file, self.stamp_ns
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            if before and file.read_text("utf-8").strip() != before:
                return
            replace_file(file, refresh_token.encode(), mode=0o600)
            fsync_path(file.parent.parent)
            if before:  # no person has changed it
                os.utime(file, ns=(stamp_ns, stamp_ns))
        except OSError as error:
            raise TokenError(f"{file} cannot be written: {reason(error)}") from None


def _use(next_hop: str) -> HopKind:
    return HopKind.GRAPH if next_hop.startswith("graph:") else HopKind.SMTP


class _HeldToken:
    """A token, or why there is none; times on the monotonic clock."""

    def __init__(self, client: OAuthClient, stamp_ns: int) -> None:
        self.made_of = (client, stamp_ns)
        self.token, self.is_for_one = "", False
        self.given = ""  # the last one
        self.ends_s = self.renew_s = self.again_s = self.failed_s = -inf
        self.replaced_s = -inf  # when a host refused a token
        self.failures = 0
        self.error = TokenError("")
        self.request: asyncio.Task[None] | None = None

    def keep(self, answer: grants.TokenAnswer, began_s: float, *, now_s: float) -> None:
        """Keep the token of a request. Raises TokenError if it has ended already."""
        lives_s = answer.expires_in
        if now_s >= began_s + lives_s:
            raise TokenError("the token had ended before it came")
        self.token = self.given = answer.access_token
        self.failures, self.failed_s = 0, -inf
        self.ends_s, self.is_for_one = began_s + lives_s, lives_s < _ONE_MESSAGE_S
        self.renew_s = began_s + max(lives_s - _RENEWED_BEFORE_S, lives_s * _RENEWED_AFTER_PART)


class TokenHolder:
    """Gets access tokens, and keeps them until shortly before their end."""

    def __init__(
        self, settings: Callable[[], Settings], clock: Clock, count: Callable[[str, str], object]
    ) -> None:
        """`count` gets the name of a client and the result of each request: ok, refused, away."""
        self._settings, self._clock, self._count = settings, clock, count
        self._held = BoundedDict[tuple[str, str, str], _HeldToken](_TOKENS_MAX)
        self._asking = BoundedDict[tuple[str, str], asyncio.Lock](_TOKENS_MAX)
        self.tasks = TaskSet()  # its requests

    async def token(self, login: Credentials, use: HopKind, refused: str = "") -> str:
        """Return a token of a login for SMTP or GRAPH. `refused` is a token that a host has
        refused, "" for none. Raises TokenError.
        """
        server = TokenServer(login.oauth, self._settings())
        client, made_of = server.client, (server.client, server.stamp_ns)
        mailbox = login.user if client.service_account is not None else ""
        key = (client.name, mailbox, grants.scope_of(client, use))
        held = self._held.get(key)
        if held is None or held.made_of != made_of:
            held = _HeldToken(*made_of)
        self._held[key] = held
        now_s = self._clock.monotonic()
        if refused and refused == held.token:
            if held.replaced_s + _REFUSED_S > now_s < held.renew_s:
                raise TokenError("the host refuses new tokens as well", error="invalid_token")
            held.replaced_s = now_s if now_s < held.renew_s else held.replaced_s
            held.token = ""
        while True:
            now_s = self._clock.monotonic()
            if now_s >= held.ends_s:
                held.token = ""
            is_due = not held.token or now_s >= held.renew_s
            if is_due and held.request is None and now_s >= held.again_s:
                held.request = self.tasks.start(self._renew(held, server, use, mailbox=mailbox))
            if held.request is None or (held.token and now_s < held.ends_s - _LAST_S):
                break
            await asyncio.shield(held.request)
        if not held.token:
            raise held.error.with_traceback(None)
        token = held.token
        held.token = "" if held.is_for_one else token
        return token

    async def _renew(
        self, held: _HeldToken, server: TokenServer, use: HopKind, *, mailbox: str
    ) -> None:
        """Ask for a token; `held` has the result."""
        name, key = server.client.name, (server.client.name, mailbox)
        lock = self._asking[key] = self._asking.get(key) or asyncio.Lock()
        try:
            async with lock:
                began_s = self._clock.monotonic()
                answer = await server.token(use, mailbox, self._clock.time_us() // 1_000_000)
            held.keep(answer, began_s, now_s=self._clock.monotonic())
        except TokenError as failure:
            error = TokenError(hiding(held.given)(str(failure)), error=failure.error)
            held.error, held.failed_s = error, self._clock.monotonic()
            held.again_s = held.failed_s + min(_AGAIN_S * 2**held.failures, _AGAIN_S_MAX)
            held.failures = min(held.failures + 1, 10)
            self._count(name, "refused" if error.error else "away")
            _log.warning("no token", oauth=name, error=str(error))
        else:
            self._count(name, "ok")
        finally:
            held.request = None

    def impaired(self, faults: Iterable[tuple[str, str]] = ()) -> str:
        """Return which clients give no tokens, and why; "" if all do. `faults` are known without a
        request: the name of a client, and why.
        """
        since_s, clients = self._clock.monotonic() - _IMPAIRED_S, self._settings().oauth
        failed = {
            name: str(held.error)
            for (name, *_), held in self._held.items()
            if held.failed_s > since_s and held.made_of[0] in clients
        }
        reasons = (failed | dict(faults)).items()
        return named([f'[[oauth]] "{name}" gives no token: {why}' for name, why in reasons], most=3)
