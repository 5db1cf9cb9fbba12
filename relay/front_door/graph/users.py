"""Handlers of users, their settings and categories, and translateExchangeIds.

A user is an account: its id is the address, and directory properties are null. A user has
mailboxSettings only if $select names them, as programs do at sign-in.

Of the mailboxSettings, Relay stores time zone and language. The others are Graph's defaults.
outlook/masterCategories is empty: a message has any categories.

An id of Relay is both a restId and a restImmutableEntryId, so each is translated to itself; in the
profile strict a message has another restId (relay/base/message/rest_id.py). The other formats of
Exchange (entryId, ewsId, immutableEntryId) do not exist here: 501.
"""

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import Scope
from relay.base.message.rest_id import read_rest_id, rest_id
from relay.base.message.time_zones import WINDOWS_ZONES, time_zone
from relay.front_door.graph import errors
from relay.front_door.graph.follow_up_flags import date_time_json
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.item_ids import folder_id_of
from relay.front_door.graph.json_values import (
    Parameters,
    invalid_value,
    one_of,
    read_array,
    read_header_text,
    read_object,
    read_parameters,
    read_string,
    unsupported,
)
from relay.front_door.graph.odata.resources import select_users
from relay.front_door.graph.responses import collection_response
from relay.front_door.graph.serializer import USER_PROPERTIES, user_json
from relay.front_door.http.errors import ApiError, quoted
from relay.front_door.http.responses import json_response
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.settings_file import UserSettings
from relay.store.mailbox.stored_message import WellKnown

MAY_READ = (Scope.MAILBOX_SETTINGS_READ, Scope.MAILBOX_SETTINGS_READ_WRITE)
MAY_CHANGE = (Scope.MAILBOX_SETTINGS_READ_WRITE,)
_TEXT_CHARACTERS = 64
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,4}")
_MEETINGS = "sendToDelegateOnly"
_HOURS = {
    "daysOfWeek": ["monday", "tuesday", "wednesday", "thursday", "friday"],
    "startTime": "08:00:00.0000000",
    "endTime": "17:00:00.0000000",
}
_PROPERTIES = ("id", "displayName", "color")
_OF_OVERRIDES = ("id", "classifyAs", "senderEmailAddress")
_LIST_OPTIONS = ("select", "filter", "orderby", "count", "top", "skip")
IDS_MAX = 1000
_OWN_TYPES = ("restid", "restimmutableentryid")
_TYPES = (*_OWN_TYPES, "entryid", "ewsid", "immutableentryid")
_PARAMETERS: Parameters = {
    "inputids": ("inputIds", partial(read_array, most=IDS_MAX)),
    "sourceidtype": ("sourceIdType", partial(one_of, choices=_TYPES)),
    "targetidtype": ("targetIdType", partial(one_of, choices=_TYPES)),
}


async def get_settings(request: GraphRequest) -> Response:
    """GET mailboxSettings: return all settings, or the selected ones."""
    options = request.options({"select"}, _SETTINGS, "mailboxSettings")
    settings = await request.store.settings.read(request.mailbox)
    resource = settings_json(settings, options.select)
    return json_response({**request.context(_context(request)), **resource})


async def get_setting(request: GraphRequest) -> Response:
    """GET one setting: an object, or a `value`."""
    request.options()
    lower_name = request.path_parameters["setting"].lower()
    name = next((name for name in _SETTINGS if name.lower() == lower_name), None)
    if name is None:
        raise errors.SEGMENT_BELOW_NOT_FOUND("There is no such setting.", quoted(lower_name))
    setting = _SETTINGS[name](await request.store.settings.read(request.mailbox))
    body = setting if isinstance(setting, Mapping) else {"value": setting}
    return json_response({**request.context(f"{_context(request)}/{name}"), **body})


async def change_settings(request: GraphRequest) -> Response:
    """PATCH mailboxSettings: replace the given settings, and return all of them."""
    body = await request.json_object("mailboxSettings")
    async with request.patch_lock:
        before = await request.store.settings.read(request.mailbox)
        settings = changed_settings(before, body)
        if settings != before:
            await request.store.settings.write(request.mailbox, settings)
    resource = settings_json(settings)
    return request.changed("mailboxSettings", _context(request), resource, is_new=False)


async def list_overrides(request: GraphRequest) -> Response:
    """GET inferenceClassification/overrides: an empty list; nothing classifies messages here."""
    request.options({"select", "top"}, _OF_OVERRIDES, "inferenceClassificationOverride")
    context = request.context(f"{request.owner}/inferenceClassification/overrides")
    return collection_response(context, ())


async def list_categories(request: GraphRequest) -> Response:
    """GET outlook/masterCategories: an empty list; no category has a colour here."""
    request.options({"select", "top", "skip"}, _PROPERTIES, "outlookCategory")
    return collection_response(request.context(f"{request.owner}/outlook/masterCategories"), ())


async def list_time_zones(request: GraphRequest) -> Response:
    """GET outlook/supportedTimeZones: the Windows names with their IANA zones, or the IANA
    names.
    """
    request.options()
    context = request.context("Collection(microsoft.graph.timeZoneInformation)")
    by_iana = request.http.segments[-1].lower().endswith("'iana')")
    zones = [
        {"alias": iana if by_iana else name, "displayName": f"{name} ({iana})"}
        for name, iana in WINDOWS_ZONES.items()
    ]
    return collection_response(context, sorted(zones, key=lambda zone: zone["alias"]))


def settings_json(settings: UserSettings, select: Collection[str] = ()) -> dict[str, Any]:
    """Return the JSON of all settings, or of the settings in `select`."""
    return {name: _SETTINGS[name](settings) for name in select or _SETTINGS}


def _context(request: GraphRequest) -> str:
    return f"{request.owner}/mailboxSettings"


def _language_json(settings: UserSettings) -> dict[str, Any]:
    return {"locale": settings.language, "displayName": settings.language_name}


_STATUSES = ("disabled", "alwaysEnabled", "scheduled")
_NO_REPLIES = {
    "status": "disabled",
    "externalAudience": "none",
    "internalReplyMessage": "",
    "externalReplyMessage": "",
    "scheduledStartDateTime": date_time_json(0),
    "scheduledEndDateTime": date_time_json(0),
}
_SETTINGS: Mapping[str, Callable[[UserSettings], Any]] = {
    "archiveFolder": lambda _: WellKnown.ARCHIVE,
    "timeZone": lambda settings: settings.time_zone,
    "delegateMeetingMessageDeliveryOptions": lambda _: _MEETINGS,
    "dateFormat": lambda _: "M/d/yyyy",
    "timeFormat": lambda _: "h:mm tt",
    "userPurpose": lambda _: "user",
    "automaticRepliesSetting": lambda _: _NO_REPLIES,
    "language": _language_json,
    "workingHours": lambda settings: _HOURS | {"timeZone": {"name": settings.time_zone}},
}


def changed_settings(before: UserSettings, body: Mapping[str, Any]) -> UserSettings:
    """Return the settings after a PATCH. null sets the default. Raises ApiError 400, 501."""
    fields: dict[str, Any] = {}
    for name, value in body.items():
        match name:
            case "timeZone":
                fields["time_zone"] = _zone(value, name)
            case "language":
                fields |= _language(value)
            case "dateFormat" | "timeFormat" | "workingHours":
                if value not in (None, _SETTINGS[name](before)):
                    raise unsupported(name, "only timeZone and language are set")
            case "automaticRepliesSetting":
                replies = read_object({} if value is None else value, name)
                is_set = any(field is not None for field in replies.values())
                default = "alwaysEnabled" if is_set else "disabled"
                status = default if replies.get("status") is None else replies["status"]
                if one_of(status, f"{name}.status", _STATUSES) != "disabled":
                    raise unsupported(name, "Relay sends no automatic replies (Sieve does)")
            case "delegateMeetingMessageDeliveryOptions":
                if read_string(value, name).lower() not in ("", _MEETINGS.lower()):
                    raise unsupported(name, "calendars and their delegates are not implemented")
    return replace(before, **fields)


_DEFAULTS = UserSettings()


def _zone(value: object, path: str) -> str:
    name = read_header_text(value, path, longest=_TEXT_CHARACTERS) or _DEFAULTS.time_zone
    try:
        time_zone(name)
    except ValueError as error:
        raise errors.TIME_ZONE_UNKNOWN(f"{path}: {error}.", quoted(name)) from None
    return name


def _language(value: object) -> dict[str, str]:
    language = read_object({} if value is None else value, "language")
    locale = read_string(language.get("locale"), "language.locale")
    if not locale:
        return {"language": _DEFAULTS.language, "language_name": _DEFAULTS.language_name}
    if not _LANGUAGE.fullmatch(locale):
        raise invalid_value("language.locale", locale, "a language such as en-US")
    name = read_header_text(
        language.get("displayName"), "language.displayName", longest=_TEXT_CHARACTERS
    )
    is_default = locale.lower() == _DEFAULTS.language.lower()
    return {
        "language": locale,
        "language_name": name or (_DEFAULTS.language_name if is_default else locale),
    }


async def get_user(request: GraphRequest) -> Response:
    """GET /me or /users/{address}."""
    options = request.options({"select"}, USER_PROPERTIES, "user")
    user = user_json(request.account, options.select)
    if "mailboxSettings" in options.select:
        request.check_scopes(MAY_READ)
        settings = await request.store.settings.read(request.mailbox)
        user["mailboxSettings"] = settings_json(settings)
    return json_response({**request.context("users/$entity"), **user})


async def list_users(request: GraphRequest) -> Response:
    """GET /users: return the users whose mailboxes the token may open."""
    options = request.collection_options(_LIST_OPTIONS, USER_PROPERTIES, "user")
    caller, accounts = request.caller, request.dependencies.accounts
    visible = [one for one in accounts.every() if accounts.opened(one.address, caller)]
    return request.page(select_users(visible, options), options, user_json, context="users")


async def translate_ids(request: GraphRequest) -> Response:
    """POST translateExchangeIds: return each id with its translation, or why it has none."""
    body = await request.json_object()
    parameters = read_parameters(body, _PARAMETERS, "translateExchangeIds", needed=_PARAMETERS)
    for name in ("sourceidtype", "targetidtype"):
        if parameters[name] not in _OWN_TYPES:
            what = "only restId and restImmutableEntryId exist in Relay"
            raise unsupported(_PARAMETERS[name][0], what)
    ids = enumerate(parameters["inputids"])
    as_rest_id = request.is_strict and parameters["targetidtype"] == _OWN_TYPES[0]
    translated = [
        await _translated(request, source, f"inputIds[{number}]", as_rest_id=as_rest_id)
        for number, source in ids
    ]
    context = request.context("Collection(microsoft.graph.convertIdResult)")
    return json_response({**context, "value": translated})


async def _translated(
    request: GraphRequest, source: object, path: str, *, as_rest_id: bool
) -> dict[str, Any]:
    if not isinstance(source, str):
        raise invalid_value(path, source, "a string", kind="String")
    try:
        text = folder_id_of(source)
        target = await _rest_id(request, text) if as_rest_id else read_rest_id(text)[0]
    except (ApiError, NoSuchItemError) as failure:
        error = failure if isinstance(failure, ApiError) else errors.ITEM_NOT_FOUND(str(failure))
        details = {"code": error.code, "message": error.message}
        return {"sourceId": source, "errorDetails": details}
    return {"sourceId": source, "targetId": target}


async def _rest_id(request: GraphRequest, text: str) -> str:
    """Return the restId of a message, and a folder's id as it is. Raises NoSuchItemError."""
    if read_rest_id(text)[1]:
        return text
    with suppress(NoSuchItemError):
        message = await request.store.messages.get(request.mailbox, text)
        return rest_id(message.id, message.folder.id)
    await request.store.folders.get(request.mailbox, text)
    return text
