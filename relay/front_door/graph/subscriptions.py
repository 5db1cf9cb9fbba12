"""Handlers of subscriptions: /subscriptions and /subscriptions/{id}.

A subscription is for the messages of a mailbox or of one of its folders.
relay/front_door/notifications decides what is sent and when. A client sees the subscriptions that
its own account has created.
"""

import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from relay.base.clock import rfc3339
from relay.base.message.web_url import UrlError
from relay.base.phrases import ahead_text, words_in
from relay.front_door.graph import errors
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import (
    invalid_value,
    is_same_json,
    one_of,
    read_boolean,
    read_string,
    read_time_us,
)
from relay.front_door.graph.mailbox_paths import find_mailbox, with_keys
from relay.front_door.http.errors import quoted
from relay.front_door.http.responses import json_response
from relay.front_door.notifications.subscription_file import Subscription
from relay.front_door.notifications.subscriptions import (
    LIFETIME_US,
    NoSubscriptionError,
    SubscriptionError,
)

_PROPERTIES = words_in(
    "id resource applicationId changeType clientState notificationUrl notificationQueryOptions "
    "lifecycleNotificationUrl expirationDateTime creatorId includeResourceData "
    "latestSupportedTlsVersion encryptionCertificate encryptionCertificateId notificationUrlAppId"
)
_CHANGE_TYPES = ("created", "updated", "deleted")
_LIST_OPTIONS = ("select", "top", "skip", "count")
_CLIENT_STATE_MAX = 128
_RESOURCE_MAX = 1024
_VERSION = re.compile(r"/?(?:(?:v1\.0|beta)/)?", re.IGNORECASE)
_invalid = errors.SUBSCRIPTION_INVALID
_LIFETIME_STRICT_US = 10_070 * 60_000_000  # Graph refuses more; its documentation has LIFETIME_US


async def list_subscriptions(request: GraphRequest) -> Response:
    """GET /subscriptions."""
    options = request.collection_options(_LIST_OPTIONS, _PROPERTIES, "subscription")
    subscriptions = request.dependencies.subscriptions.of(request.caller.address)
    return request.page(subscriptions, options, _subscription_json, context="subscriptions")


async def get_subscription(request: GraphRequest) -> Response:
    """GET /subscriptions/{id}."""
    options = request.options({"select"}, _PROPERTIES, "subscription")
    return _response(request, _subscription_of(request), select=options.select)


async def create_subscription(request: GraphRequest) -> Response:
    """POST /subscriptions: the receivers are asked first; 201 when it is durable."""
    body = await request.json_object()
    new = await _read_new(request, body)
    try:
        created = await request.dependencies.subscriptions.create(new)
    except (SubscriptionError, UrlError) as error:
        raise _invalid(str(error)) from None
    return _response(request, created, status=HTTPStatus.CREATED)


async def change_subscription(request: GraphRequest) -> Response:
    """PATCH /subscriptions/{id}: change the expiration time or the URL."""
    body, subscription = await request.json_object(), _subscription_of(request)
    _check_rights(request, subscription)
    current, changed = _subscription_json(subscription, ()), dict[str, Any]()
    for name, value in body.items():
        if name == "expirationDateTime":
            changed["expires_us"] = _read_expiry(request, body)
        elif name == "notificationUrl":
            changed["url"] = _read_url(request, body, name)
        elif name in current and value is not None and not is_same_json(value, current[name]):
            expected = "expirationDateTime or notificationUrl; make a new subscription"
            raise invalid_value(name, value, expected)
    try:
        after = await request.dependencies.subscriptions.renew(subscription, **changed)
    except NoSubscriptionError:
        raise errors.SUBSCRIPTION_NOT_FOUND("It has ended meanwhile.") from None
    except (SubscriptionError, UrlError) as error:
        raise _invalid(str(error)) from None
    return _response(request, after)


async def reauthorize(request: GraphRequest) -> Response:
    """POST /subscriptions/{id}/reauthorize: check that the account may still read the mailbox."""
    _check_rights(request, _subscription_of(request))
    return Response(status_code=204)


async def delete_subscription(request: GraphRequest) -> Response:
    """DELETE /subscriptions/{id}."""
    subscription = _subscription_of(request)
    await request.dependencies.subscriptions.remove(subscription)
    return Response(status_code=204)


async def _read_new(request: GraphRequest, body: Mapping[str, Any]) -> Subscription:
    """Return the subscription in a body. Raises ApiError 400, 403, 404, 501."""
    for name in ("changeType", "notificationUrl", "resource", "expirationDateTime"):
        if body.get(name) in (None, ""):
            raise _invalid(f"{name} is a required property for subscription creation.")
    if read_boolean(body.get("includeResourceData") or False, "includeResourceData"):
        raise errors.not_implemented("includeResourceData")
    client_state = read_string(body.get("clientState"), "clientState")
    if len(client_state) > _CLIENT_STATE_MAX:
        actual = f"found {len(client_state)} characters"
        raise _invalid(f"clientState: {actual}, expected at most {_CLIENT_STATE_MAX}.")
    tls = body.get("latestSupportedTlsVersion") or "v1_2"
    resource = read_string(body["resource"], "resource")
    mailbox, folder_id = await _read_resource(request, resource)
    return Subscription(
        id="",
        position="",
        creator=request.caller.address,
        is_application=request.caller.is_application,
        credentials=request.caller.credentials,
        mailbox=mailbox,
        folder_id=folder_id,
        resource=resource,
        change_types=_read_change_types(body["changeType"]),
        url=_read_url(request, body, "notificationUrl"),
        lifecycle_url=_read_url(request, body, "lifecycleNotificationUrl"),
        client_state=client_state,
        tls_version=one_of(tls, "latestSupportedTlsVersion", ("v1_0", "v1_1", "v1_2", "v1_3")),
        expires_us=_read_expiry(request, body),
        has_immutable_ids=request.shows_immutable_ids,
    )


async def _read_resource(request: GraphRequest, text: str) -> tuple[str, str]:
    """Return the mailbox and the id of the folder, "" for all, that a resource names."""
    path, has_options, options = text.partition("?")
    if has_options and "$filter" in options.lower():
        raise errors.not_implemented("$filter in the resource of a subscription")
    if has_options or len(text) > _RESOURCE_MAX:
        raise invalid_value("resource", text, "a path without query options")
    segments = with_keys(tuple(_VERSION.sub("", path, count=1).split("/")))
    rest = tuple(segment.lower() for segment in segments[1 if segments[0].lower() == "me" else 2 :])
    is_user = segments[0].lower() in ("me", "users") and "" not in segments
    is_folder = len(rest) == 3 and rest[0] == "mailfolders" and rest[2] == "messages"
    if not is_user or (rest != ("messages",) and not is_folder):
        expected = "me/messages, users/{id}/messages or …/mailFolders/{id}/messages"
        raise invalid_value("resource", text, expected)
    account, _ = await find_mailbox(segments, request.caller, request.dependencies.accounts)
    if not is_folder:
        return account.address, ""
    return account.address, (await request.store.folders.get(account.address, rest[1])).id


def _read_change_types(value: object) -> tuple[str, ...]:
    names = read_string(value, "changeType").split(",", len(_CHANGE_TYPES))
    return tuple(dict.fromkeys(one_of(name.strip(), "changeType", _CHANGE_TYPES) for name in names))


def _read_url(request: GraphRequest, body: Mapping[str, Any], name: str) -> str:
    """Return a URL of the body, "" for none."""
    text = read_string(body.get(name), name)
    if request.is_strict and text.lower().startswith("http:"):
        raise errors.URL_NOT_HTTPS(f"{name}: expected https.", quoted("http"))
    try:
        return request.dependencies.subscriptions.client.read_url(text).text if text else ""
    except UrlError as error:
        raise _invalid(f"{name}: {error}.") from None


def _read_expiry(request: GraphRequest, body: Mapping[str, Any]) -> int:
    name, clock = "expirationDateTime", request.dependencies.clock
    now_us = clock.time_us()
    expires_us = read_time_us(body[name], name)
    if expires_us <= now_us:
        ahead = ahead_text(rfc3339(now_us), clock.advanced_s)
        raise _invalid(f"{name}: found {quoted(body[name])}, which is over{ahead}.")
    lifetime_us = _LIFETIME_STRICT_US if request.is_strict else LIFETIME_US
    if expires_us > now_us + lifetime_us:
        expected = f"expected at most {lifetime_us // 60_000_000} minutes from now"
        raise errors.EXPIRES_TOO_LATE(f"{name}: found {quoted(body[name])}, {expected}.")
    return expires_us


def _check_rights(request: GraphRequest, subscription: Subscription) -> None:
    if not request.dependencies.subscriptions.may_read(subscription):
        raise errors.ACCESS_DENIED(f"This account may not read {subscription.mailbox} any more.")


def _subscription_of(request: GraphRequest) -> Subscription:
    subscription_id = request.path_parameters["subscription"]
    try:
        return request.dependencies.subscriptions.get(subscription_id, request.caller.address)
    except NoSubscriptionError:
        detail = f"This account has no subscription {quoted(subscription_id)}."
        raise errors.SUBSCRIPTION_NOT_FOUND(detail) from None


def _response(
    request: GraphRequest,
    subscription: Subscription,
    *,
    select: Collection[str] = (),
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    context = request.context("subscriptions/$entity")
    return json_response({**context, **_subscription_json(subscription, select)}, status=status)


def _subscription_json(subscription: Subscription, select: Collection[str]) -> dict[str, Any]:
    """Return the JSON of a subscription. Its clientState is never shown."""
    known = {
        "id": subscription.id,
        "resource": subscription.resource,
        "changeType": ",".join(subscription.change_types),
        "notificationUrl": subscription.url,
        "lifecycleNotificationUrl": subscription.lifecycle_url or None,
        "expirationDateTime": rfc3339(subscription.expires_us),
        "creatorId": subscription.creator,
        "latestSupportedTlsVersion": subscription.tls_version,
    }
    return {name: known.get(name) for name in select or _PROPERTIES}
