"""/relay/v1 as an ASGI application, which answers /healthz, /readyz and /metrics itself.

Health and metrics need no token and contain nothing about single messages; accounts have names in
metrics on this machine and at observe.metrics only. Everything else needs a token, except on the
control socket, where the file mode controls the access, and in an open development relay, to which
pages of other sites have no access (relay/operation/app/front_door.py). `handlers` has what needs a
principal. Why /readyz is a 503 is decided in relay/operation/app/front_door.py.

Only a development relay has /mcp (relay/development/mcp.py), /relay/v1/dev/…, /relay/v1/quiet and
DELETE /relay/v1/messages; in a service they are 404, as any unknown path. With --private,
a DELETE, and what changes the clock or the simulated internet, needs the role operate. The scenario
of the simulated internet is TOML or JSON, and only for clients on loopback; a faulty one changes
nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import UnknownUserError
from relay.base.advanceable_clock import AdvanceError
from relay.base.clock import rfc3339
from relay.base.message.address import own_mailbox, parse_mailbox
from relay.base.message.envelope import domain_of
from relay.base.message.status import one_line
from relay.base.observe.metrics import CONTENT_TYPE
from relay.base.pressure import PressureState
from relay.base.settings.document import SettingsError
from relay.base.shares import REFUSALS
from relay.front_door.api.dependencies import (
    ApiDependencies,
    DevelopmentControls,
    Principal,
    operator_at_socket,
    principal_of,
)
from relay.front_door.api.handlers import WAIT_S, WAIT_S_MAX, Handlers
from relay.front_door.api.request_parameters import (
    LIST_PARAMETERS,
    LOG_PARAMETERS,
    QUEUE_PARAMETERS,
    REFUSED_PARAMETERS,
    number_of,
    read_body,
    require_method,
    single_values,
)
from relay.front_door.api.search_text import list_search_of
from relay.front_door.http.browsers import is_from_here
from relay.front_door.http.errors import (
    ApiError,
    bad_request,
    quoted,
    service_unavailable,
    unsupported_media_type,
)
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits, body_too_large
from relay.front_door.http.responses import json_response
from relay.store.journeys.event_feed import parse_event_cursor
from relay.store.mailbox.errors import StoreError
from relay.store.spool.queue_commands import Operation
from relay.store.spool.types import SpoolError

_BYTES_MAX = 256 * 1024
_FAULTS_MAX = 20
_ACCOUNTS_NAMED = 10  # in /metrics
_ADDRESSES_BYTES_MAX = 30_000_000  # 100,000 addresses of 254 octets, in JSON
_AGE_S_MAX = 1e9
_TOML = "application/toml"
_JSON = "application/json"
if TYPE_CHECKING:  # imports libraries that the control socket does not need
    from relay.front_door.sign_in.authentication import HttpAuthentication

PREFIXES = ("relay", "healthz", "livez", "readyz", "metrics")  # the first segments of all paths
_BODY_BYTES_MAX = 1 << 20
_HELD_BYTES_MAX = 32 << 20

_FOR_OPERATORS = {(("dev",), "POST"), (("dev",), "PUT"), (("messages",), "DELETE")}


class _QuietBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=WAIT_S_MAX)] = WAIT_S
    after: str = ""  # "": the newest


class _AdvanceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    advance_s: float


async def development_response(
    request: HttpRequest, controls: DevelopmentControls, principal: Principal, *, handlers: Handlers
) -> Response | None:
    """Return the response of a development relay, None for a path that it does not add."""
    path = tuple(map(str.lower, request.segments[2:]))
    if (path[:1], request.method) in _FOR_OPERATORS:
        principal.check_may_operate()
    match path:
        # `GET`, `POST dev/clock` `{advance_s}`: `{now, advanced_s}`; `relay dev` only
        case ("dev", "clock"):
            return json_response(await _clock(request, controls))
        # `GET`, `PUT dev/internet`: the scenario as TOML, or `{toml, used: [{entry, used, left}]}`;
        # `relay dev` only
        case ("dev", "internet"):
            return await scenario_response(request, controls)
        # `POST quiet` `{timeout_s, after}`: `{quiet, messages, cursor, in_flight}`, when nothing is
        # in flight or due; `relay dev` only
        case ("quiet",):
            return json_response(await _quiet(request, controls, principal, handlers=handlers))
        # `DELETE messages`: `{messages}`; `relay dev` only
        case ("messages",) if request.method == "DELETE":
            single_values(request.query, ())
            return json_response({"messages": await controls.reset()})
        # `DELETE messages/{id}`: 204; `relay dev` only
        case ("messages", _) if request.method == "DELETE":
            single_values(request.query, ())
            await handlers.remove_message(request.segments[3], principal)
            return Response(status_code=204)
        case _:
            return None


async def _clock(request: HttpRequest, controls: DevelopmentControls) -> dict[str, Any]:
    """GET and POST /dev/clock: the time of the relay, and how far it is ahead."""
    require_method(request, "GET", "POST")
    if request.method == "POST":
        body = read_body(await request.body(), _AdvanceBody)
        try:
            await controls.advance_clock(body.advance_s)
        except ValueError as error:
            raise bad_request(f"advance_s: {error}.") from None
        except AdvanceError as error:
            text = str(error)
            raise ApiError(503, "ResourceUnhealthy", f"{text[:1].upper()}{text[1:]}.") from None
    clock = controls.clock
    return {"now": rfc3339(clock.time_us()), "advanced_s": clock.advanced_s}


async def _quiet(
    request: HttpRequest, controls: DevelopmentControls, principal: Principal, *, handlers: Handlers
) -> dict[str, Any]:
    """POST /quiet {timeout_s, after}: wait until nothing is due in the queue or in progress.

    The answer is {quiet, messages, cursor, in_flight}: messages after a cursor, and messages on
    their way.
    """
    _query(request, "POST")
    asked = read_body(await request.body(), _QuietBody)
    query = {"after": asked.after} if asked.after else {}
    list_search_of(query, 0)  # a bad cursor does not wait
    with handlers.counted_wait(principal.account):
        is_quiet = await request.cancel_on_disconnect(controls.is_quiet(asked.timeout_s))
    listed = await handlers.messages(query, principal)
    return {
        "quiet": is_quiet,
        "messages": listed["messages"],
        "cursor": listed["cursor"],
        "in_flight": await handlers.in_flight(principal),
    }


# -- the scenario


async def scenario_response(request: HttpRequest, controls: DevelopmentControls) -> Response:
    """GET and PUT /dev/internet: return the scenario in force, after a PUT the new one. Raises
    ApiError.
    """
    require_method(request, "GET", "PUT")
    if request.method == "PUT":
        await _replace(request, controls)
    accept = request.headers.get("accept", "").lower()
    if _JSON in accept and _TOML not in accept:
        return json_response({"toml": controls.scenario_toml, "used": controls.used_replies()})
    return Response(controls.scenario_toml, media_type=f"{_TOML}; charset=utf-8")


async def _replace(request: HttpRequest, controls: DevelopmentControls) -> None:
    if request.media_type not in (_TOML, _JSON):
        raise unsupported_media_type(request.media_type, f"{_TOML} or {_JSON}")
    request.limit_body(_BYTES_MAX, partial(body_too_large, _BYTES_MAX))
    body = await request.body()
    try:
        await controls.use_scenario(_content(body, is_json=request.media_type == _JSON))
    except SettingsError as error:
        faults = [f"{fault}." for fault in error.faults[:_FAULTS_MAX]]
        if len(error.faults) > _FAULTS_MAX:
            faults.append(f"And {len(error.faults) - _FAULTS_MAX} more.")
        raise bad_request(" ".join(faults)) from None


def _content(body: bytes, *, is_json: bool) -> str | dict[str, Any]:
    if is_json:
        return read_body(body or b"null", dict[str, Any])  # no body is no scenario
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        actual = f"the byte 0x{body[error.start]:02x} in line {line}"
        raise bad_request(f"The body: found {actual}, expected UTF-8.") from None


def create_app(
    dependencies: ApiDependencies,
    authentication: "HttpAuthentication",
    *,
    everyone: Principal | None = None,
    names_accounts: bool = False,
) -> Gateway:
    """Return the application for public listeners, whose requests need a bearer token.

    With `everyone`, clients on this machine need none: their requests are made by `everyone`.
    Metrics name accounts to clients on this machine without a proxy between; with `names_accounts`,
    to all.
    """

    def principal_for(request: HttpRequest) -> Principal:
        if everyone is not None and request.is_local:
            request.account = everyone.name
            return everyone
        return principal_of(authentication.account(request))

    return _application(dependencies, principal_for, names_accounts=names_accounts)


def create_control_app(dependencies: ApiDependencies) -> Gateway:
    """Return the application for run/control.sock: every client is an operator."""
    return _application(dependencies, operator_at_socket, names_accounts=True)


def _application(
    dependencies: ApiDependencies,
    principal_for: Callable[[HttpRequest], Principal],
    *,
    names_accounts: bool,
) -> Gateway:
    handlers = Handlers(dependencies)

    async def handle(request: HttpRequest) -> Response:
        try:
            names = names_accounts or is_from_here(request)
            public_response = _public_response(request, dependencies, names_accounts=names)
            if public_response is not None:
                return public_response
            if request.segments == ("mcp",) and (controls := dependencies.development) is not None:
                return await controls.respond_to_agent(request, principal_for(request))
            if tuple(map(str.lower, request.segments[:2])) != ("relay", "v1"):
                raise _not_found(request)
            principal = principal_for(request)
            if (controls := dependencies.development) is not None:
                response = await development_response(
                    request, controls, principal, handlers=handlers
                )
                if response is not None:
                    return response
            # `GET webhooks`, `POST webhooks/test` `{url}`, `webhooks/replay` `{url, from}`: as
            # `relay webhook`
            if request.segments[2:3] == ("webhooks",):
                return json_response(await _webhooks(request, principal, dependencies))
            # `GET usage?account=`, `DELETE usage?account=`: `{accounts: [{account, messages,
            # recipients, limits: [{what, rate, used, until}]}]}` of today (UTC); after `DELETE` the
            # mail sent before counts no longer
            if request.segments[2:] == ("usage",):
                return json_response(_usage(request, principal, dependencies))
            # `GET suppressed?domain=&since=`: `{suppressed: [{address, since, last, count, reply,
            # by, reason}]}`, and `off` without a list; `POST suppressed` `{addresses, reason}`:
            # `{added}`; `DELETE suppressed?address=`: `{}`
            if request.segments[2:] == ("suppressed",):
                return json_response(await _suppressed(request, principal, dependencies))
            # `GET configuration`: `{text, text_at_start}`; over the control socket of a service
            # only
            if request.segments[2:] == ("configuration",) and principal.is_at_socket:
                # it may have secrets: only for users who can read relay.toml
                _query(request, "GET")
                return json_response(dependencies.configuration() or {"text": ""})
            return await _relay_v1(request, principal, handlers)
        except (SpoolError, StoreError) as error:
            raise service_unavailable(str(error), retry_after_s=5) from error

    limits = RequestLimits(
        body_bytes=_BODY_BYTES_MAX, held_bytes=_HELD_BYTES_MAX, bound="api bodies"
    )
    return Gateway(handle, clock=dependencies.clock, limits=limits)


def _public_response(
    request: HttpRequest, dependencies: ApiDependencies, *, names_accounts: bool
) -> Response | None:
    """Return the response for health and metrics, None for other paths.

    Only exactly these paths are public: a proxy that blocks /metrics is not bypassed by /metrics/.
    """
    match request.path:
        case b"/healthz":
            require_method(request, "GET")
            return Response("ok\n", media_type="text/plain")
        case b"/readyz":
            require_method(request, "GET")
            reason = dependencies.ready()
            status = 503 if reason else 200
            text = reason or _readiness(dependencies.pressure.state, dependencies.impaired())
            return Response(f"{text}\n", status_code=status, media_type="text/plain")
        case b"/metrics":
            require_method(request, "GET")
            busiest = dependencies.usage("", False)[:_ACCOUNTS_NAMED] if names_accounts else ()
            messages = {usage.account: usage.messages for usage in busiest}
            exposition = dependencies.metrics.exposition(messages, REFUSALS.counts)
            return Response(exposition, headers={"content-type": CONTENT_TYPE})
        case _:
            return None


def _readiness(state: PressureState, impaired: str) -> str:
    """Return the text of /readyz. Under pressure the relay is ready: it reads and delivers mail."""
    level = f"{state.level.name.lower()}: {', '.join(state.reasons)}" if state.levels else ""
    return "; ".join(filter(None, ("ready", level, impaired)))


class _WebhookBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""  # "": all
    from_: str = msgspec.field(name="from", default="")


async def _webhooks(
    request: HttpRequest, principal: Principal, needed: ApiDependencies
) -> dict[str, Any]:
    """GET /webhooks, POST /webhooks/test and /webhooks/replay: for operators only, since URLs may
    have secrets.
    """
    principal.check_may_operate()
    single_values(request.query, ())
    webhooks, verb = needed.webhooks, request.segments[3:]
    if verb not in ((), ("test",), ("replay",)):
        raise ApiError(404, "ResourceNotFound", "Expected webhooks, or its test or replay.")
    require_method(request, "POST" if verb else "GET")
    if verb:
        body = read_body(await request.body(), _WebhookBody)
        urls = [
            str(webhook["url"])
            for webhook in webhooks.shown()
            if body.url in ("", str(webhook["url"]))
        ]
        if body.url and not urls:
            raise ApiError(404, "ErrorItemNotFound", f"There is no webhook {quoted(body.url)}.")
        if verb == ("test",):
            return {"webhooks": await webhooks.test(urls)}
        try:
            cursor = parse_event_cursor(body.from_)
        except ValueError:
            text = 'the cursor of an event, or "0" for the beginning'
            raise bad_request(f"from: found {quoted(body.from_)}, expected {text}.") from None
        await webhooks.replay(cursor, urls)
        principal.log("webhooks replay", cursor=body.from_, count=len(urls))
    return {"webhooks": webhooks.shown()}


def _usage(request: HttpRequest, principal: Principal, needed: ApiDependencies) -> dict[str, Any]:
    """GET /usage?account=: what accounts have sent to other domains today, and their limits.

    DELETE resets the count of one account.
    """
    is_reset = request.method == "DELETE"
    query = _query(request, "DELETE" if is_reset else "GET", "account")
    account = query.get("account") or principal.account or ""
    if is_reset:
        principal.check_may_operate()
        principal.log("usage reset", user=account)
    elif account != principal.name:
        principal.check_may_read()
    try:
        return {"accounts": [usage.as_json() for usage in needed.usage(account, is_reset)]}
    except UnknownUserError:
        message = f"There is no account {quoted(account)}."
        raise ApiError(404, "ErrorItemNotFound", message) from None


class _SuppressedBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    addresses: list[str]
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


async def _suppressed(
    request: HttpRequest, principal: Principal, needed: ApiDependencies
) -> dict[str, Any]:
    """GET, POST and DELETE /suppressed: the list of dead addresses, and what operators change."""
    principal.check_may_operate()
    require_method(request, "GET", "POST", "DELETE")
    suppression = needed.suppression
    if request.method == "GET":
        query = single_values(request.query, ("domain", "since"))
        since_s = number_of(query, "since", default=0, limits=(0, _AGE_S_MAX))
        domain = domain_of(f"@{query.get('domain', '')}")
        rows = await suppression.listed(domain=domain, since_s=since_s)
        return {"suppressed": rows} | ({} if suppression.settings else {"off": True})
    if request.method == "DELETE":
        address = single_values(request.query, ("address",)).get("address", "")
        if not await suppression.remove(address):
            raise ApiError(404, "ErrorItemNotFound", f"{quoted(address)} is not on the list.")
        principal.log("suppression removed", to=own_mailbox(address))
        return {}
    single_values(request.query, ())
    if suppression.settings is None:
        raise ApiError(409, "ErrorIrresolvableConflict", "The configuration has no [suppression].")
    request.limits = replace(request.limits, body_bytes=_ADDRESSES_BYTES_MAX)
    body = read_body(await request.body(), _SuppressedBody)
    names = _suppressible(body.addresses, needed.is_own)
    reason = one_line(body.reason)
    try:
        return {"added": await suppression.add(names, who=principal.name, reason=reason)}
    except ValueError as error:
        raise bad_request(f"{error}.") from None


def _suppressible(addresses: Sequence[str], is_own: Callable[[str], bool]) -> Iterator[str]:
    """Yield addresses as they are compared. Raises ValueError with the place of a faulty one."""
    for number, address in enumerate(addresses):
        try:
            name = parse_mailbox(address, smtputf8=True)
        except ValueError as error:
            raise ValueError(f"addresses[{number}]: {error}") from None
        if is_own(domain_of(name)):
            fault = f"{name} is in an own domain, which is never looked up"
            raise ValueError(f"addresses[{number}]: {fault}")
        yield name


async def _relay_v1(request: HttpRequest, principal: Principal, handlers: Handlers) -> Response:
    match request.segments[2:]:
        case ("messages",):
            query = _with_cursor(_query(request, "GET", *LIST_PARAMETERS))
            messages = handlers.messages(query, principal)
            return json_response(await request.cancel_on_disconnect(messages))
        case ("log",):
            rows = handlers.log(_query(request, "GET", *LOG_PARAMETERS), principal)
            return json_response(await request.cancel_on_disconnect(rows))
        case ("messages", key):
            _query(request, "GET")
            return json_response(await handlers.message(key, principal))
        case ("messages", key, "source" | "checks" as view):
            _query(request, "GET")
            return await handlers.source(key, principal, view=view)
        case ("messages", key, "release") if handlers.is_development:
            _query(request, "POST")
            return json_response(await handlers.release_message(key, request, principal))
        case ("messages", key, "wait"):
            query = _query(request, "GET", "state", "timeout")
            wait = handlers.wait_for_message(key, query, principal)
            return json_response(await request.cancel_on_disconnect(wait))
        case ("events",):
            query = _with_cursor(_query(request, "GET", "after", "message"))
            last_event_id = request.headers.get("last-event-id")
            return await handlers.events(query, last_event_id, principal)
        case ("refused",):
            query = _with_cursor(_query(request, "GET", *REFUSED_PARAMETERS))
            return json_response(await handlers.refused(query, principal))
        case ("queue",):
            return await handlers.queue_list(_query(request, "GET", *QUEUE_PARAMETERS), principal)
        case ("queue", "stats"):
            _query(request, "GET")
            return json_response(await handlers.queue_stats(principal))
        case ("stats",):
            traffic = handlers.traffic(_query(request, "GET", "by", "since"), principal)
            return json_response(await request.cancel_on_disconnect(traffic))
        case ("storage", "prune"):
            _query(request, "POST")
            return json_response(await handlers.prune(request, principal))
        case ("explain",):
            return json_response(await handlers.explain.answer(request, principal))
        case ("accounts", "changed") if principal.is_at_socket:
            _query(request, "POST")
            return json_response(await handlers.note_change(request, principal))
        case ("accounts", "unlock"):
            _query(request, "POST")
            return json_response(await handlers.unlock(request, principal))
        case ("pause" | "resume" as verb,):
            return json_response(await handlers.pauses(verb, request, principal))
        case ("reload",):
            _query(request, "POST")
            return json_response(await handlers.reload(principal))
        case ("queue", operation) if operation in tuple(Operation):
            _query(request, "POST")
            changed = await handlers.change_queue(Operation(operation), request, principal)
            return json_response(changed)
        case _:
            raise _not_found(request)


def _query(request: HttpRequest, method: str, *allowed: str) -> dict[str, str]:
    """Return the query parameters. Raises ApiError 405 for another method, 400 as
    single_values().
    """
    require_method(request, method)
    return single_values(request.query, allowed)


def _with_cursor(query: dict[str, str]) -> dict[str, str]:
    """Return the parameters without an empty `after`: a program begins its loop with "after="."""
    if query.get("after") == "":
        del query["after"]
    return query


def _not_found(request: HttpRequest) -> ApiError:
    path = request.path.decode("utf-8", "replace")
    return ApiError(404, "ResourceNotFound", f"There is nothing at the path {quoted(path)}.")
