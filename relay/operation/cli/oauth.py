"""`relay oauth login | test`: sign in once for the tokens of an [[oauth]], and try to get them.

Both read the configuration and need no running relay, which uses a new refresh token at once. Exit
codes: 75 while the token server or Graph is away, 77 where a person must sign in, 78 for the
configuration, and where Graph does not let the mailbox be read. RFC 8628 (device code); for Google
RFC 8252 and RFC 7636: nothing listens at the redirect, so the browser shows its address, and the
user pastes it.
"""

import asyncio
import hashlib
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import click
import msgspec
import uvloop

from relay.base.clock import SystemClock, rfc3339
from relay.base.message.nexthop import HopKind
from relay.base.settings.tree import Route
from relay.base.settings.validation import host_of
from relay.delivery.graph.connection import GraphConnection, GraphItems
from relay.delivery.http_connection import HttpError
from relay.delivery.oauth.grants import SIGN_IN, TokenAnswer, is_delegated, scope_of, token_url
from relay.delivery.oauth.tokens import TokenServer
from relay.delivery.smtp.connect import ConnectError, Target, TokenError
from relay.delivery.smtp.connection import Timeouts
from relay.operation.app.state_dir import as_owner
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, common_options
from relay.operation.cli.output import printable
from relay.transport.routing.routes import table_route

_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
_GOOGLE = "https://accounts.google.com/o/oauth2/v2/auth"
_REDIRECT = "http://127.0.0.1"
_WAIT_S_MAX, _INTERVAL_S_MIN, _SLOWER_S = 1800.0, 1.0, 5.0
_BY_PERSON = (*SIGN_IN, "access_denied", "expired_token")


@click.group()
@common_options
def oauth(_given: CommandContext) -> None:
    """Sign in for the tokens of routes (OAuth 2.0), and try to get them."""


@oauth.command()
@click.argument("name")
@common_options
def login(context: CommandContext, name: str) -> None:
    """Sign in for an [[oauth]], on this node.

    Microsoft and others: a code is entered on a page. Google: the address is pasted that the
    browser shows after the sign-in. A running relay uses the token at once.
    """
    _run(context, name, _sign_in)
    context.show({"name": name}, lambda: [f"signed in; relay oauth test {name} shows for whom"])


@oauth.command()
@click.argument("name")
@common_options
def test(context: CommandContext, name: str) -> None:
    """Get tokens of an [[oauth]], and see whether they open the mailbox."""
    rows = _run(context, name, _try)
    start = "{use}: {for}, until {until}: {scopes}"
    words = ["; ".join(filter(None, (start.format(**row), row["seen"]))) for row in rows]
    context.show(rows, lambda: words)


def _run(
    context: CommandContext,
    name: str,
    work: Callable[[TokenServer], Coroutine[Any, Any, list[Any]]],
) -> list[Any]:
    """Do the work as the service's user. Raises CommandError."""
    settings = context.settings()
    try:
        with as_owner(settings):
            return uvloop.run(work(TokenServer(name, settings)))
    except TokenError as error:
        code = ExitCode.NO_PERMISSION if error.error in _BY_PERSON else ExitCode.CONFIGURATION
        code = code if error.error else ExitCode.TRY_LATER
        raise CommandError(code, printable(f"relay oauth: {error}")) from None


async def _try(server: TokenServer) -> list[Any]:
    rows, client = list[Any](), server.client
    for (use, mailbox), route in server.uses.items():
        now_us = SystemClock().time_us()
        answer = await server.token(use, mailbox, now_us // 1_000_000)
        claims, roles = dict[str, Any](), ""  # of a token that others cannot read there are none
        with suppress(ValueError, IndexError, RecursionError, TypeError):
            part = answer.access_token.split(".")[1]
            claims = msgspec.json.decode(urlsafe_b64decode(part + "=="), type=dict[str, Any])
            roles = " ".join(claims.get("roles", ()))
        names = (claims.get("upn"), mailbox, claims.get("app_displayname"), client.client_id)
        scopes = claims.get("scp") or roles or answer.scope
        until = rfc3339(now_us + int(answer.expires_in * 1e6))
        whom = next(filter(None, names), "")
        seen = ""
        if route is not None and use is HopKind.GRAPH and mailbox:
            seen = await _look(server, route, answer.access_token)
        rows.append({"use": use, "for": whom, "scopes": scopes, "until": until, "seen": seen})
    return rows


async def _look(server: TokenServer, route: Route, token: str) -> str:
    """Return whether a token may read the mailbox of a route to Graph. Raises TokenError."""
    if route.confirm is False:
        return "Mail.Send, which is enough with confirm = false, is seen only by sending"
    via, place = table_route(0, route, "none").options, host_of(route)
    assert place is not None

    async def get_token(*_: object) -> str:
        return token

    host, port = place.host, place.port
    target = Target(host, host, port, tls=via.tls, login=via.login, graph=via.graph)
    times: dict[str, Any] = {"timeouts": Timeouts(), "real_s": SystemClock().real_s}
    with closing(GraphConnection(target, get_token, server.proxy, **times)) as session:
        try:
            await session.renew_token()
            answer = await session.request("GET", session.login.user, "messages?$top=1&$select=id")
            session.read(answer, GraphItems)
        except (ConnectError, HttpError) as error:
            is_refused = isinstance(error, ConnectError) and ".7." in error.outcome.evidence.status
            code, text = "refused" if is_refused else "", f"{route.next_hop}: {error}"
            raise TokenError(text, error=code) from None
    return "may read the mailbox; Mail.Send is seen only by sending"


async def _sign_in(server: TokenServer) -> list[Any]:
    client, uses = server.client, [use for use, _ in server.uses]
    if not is_delegated(client):
        text = f'[[oauth]] "{client.name}" has a secret of its own: no sign-in is needed'
        raise TokenError(text, error="invalid_client")
    way = _by_pasted_address if client.provider == "google" else _by_device_code
    for scope in dict.fromkeys(scope_of(client, use) for use in uses):  # of one resource in each
        answer = await way(server, {"client_id": client.client_id, "scope": scope})
        if not answer.refresh_token:
            text = "the answer has no refresh token: scope needs offline_access"
            raise TokenError(text, error="invalid_scope")
        server.store(answer.refresh_token)
    return []


async def _by_device_code(server: TokenServer, form: dict[str, str]) -> TokenAnswer:
    client = server.client
    url = client.device_url or f"{token_url(client).rpartition('/')[0]}/devicecode"
    code = await server.ask(form, url)
    page = f"Open {code.verification_uri} and enter the code {code.user_code}"
    click.echo(printable(page), err=True)
    asked = {"grant_type": _DEVICE, "client_id": client.client_id, "device_code": code.device_code}
    interval_s, left_s = max(code.interval, _INTERVAL_S_MIN), min(code.expires_in, _WAIT_S_MAX)
    while (left_s := left_s - interval_s) > 0:
        await asyncio.sleep(interval_s)  # real time: a peer
        try:
            return await server.ask(asked)
        except TokenError as error:
            if error.error not in ("", "authorization_pending", "slow_down"):
                raise
            interval_s += _SLOWER_S if error.error == "slow_down" else 0.0
    raise TokenError("the code was not entered in time", error="expired_token")


async def _by_pasted_address(server: TokenServer, form: dict[str, str]) -> TokenAnswer:
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
    query = form | {"redirect_uri": _REDIRECT, "response_type": "code", "state": state}
    query |= {"access_type": "offline", "prompt": "consent"}  # or there is no refresh token
    query |= {"code_challenge": challenge, "code_challenge_method": "S256"}
    text = "Open this page and sign in. Then the browser shows an address that begins with"
    text = f"{text} {_REDIRECT}, and no page: paste it here.\n\n{_GOOGLE}?{urlencode(query)}\n"
    click.echo(text, err=True)
    pasted = urlsplit(click.prompt("Address", err=True).strip()).query
    answer = dict(parse_qsl(pasted))
    if answer.get("state") != state or "code" not in answer:
        expected = "expected the address that follows this page, with state and code"
        raise TokenError(answer.get("error", expected), error="access_denied")
    proof = {"code": answer["code"], "code_verifier": verifier, "redirect_uri": _REDIRECT}
    own = {"client_id": form["client_id"], "client_secret": server.client.client_secret}
    return await server.ask({"grant_type": "authorization_code", **proof, **own})
