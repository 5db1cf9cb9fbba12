"""The routes in a mailbox: from a path and method to a handler and what the request adds.

Names of resources and actions match in any case; the prefix `microsoft.graph.` is accepted. An
unknown path is a 404, a resource of Graph that is not implemented a 501, another method a 405 with
Allow (RFC 9110 15.5.5, 15.5.6).
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto

from msgspec import Struct
from starlette.responses import Response

from relay.accounts.account import Scope
from relay.graph import (
    attachments,
    categories,
    delta,
    mail_folders,
    mailbox_settings,
    messages,
    replies,
    send_mail,
    translate_ids,
    users,
)
from relay.graph.graph_request import GraphRequest, not_implemented
from relay.http.errors import ApiError, quoted

Handler = Callable[[GraphRequest], Awaitable[Response]]
_NAMESPACE = "microsoft.graph."
_ANY_REST = "*"  # at the end of a pattern: any number of segments


class Intake(Enum):
    """What a request adds: a message to the queue, content to a mailbox, or neither."""

    NOTHING = auto()
    CONTENT = auto()
    MESSAGE = auto()


MAY_READ = (Scope.MAIL_READ, Scope.MAIL_READ_WRITE)
MAY_CHANGE = (Scope.MAIL_READ_WRITE,)
MAY_SEND = (Scope.MAIL_SEND,)
MAY_READ_USER = (Scope.USER_READ,)


class GraphOperation(Struct, frozen=True):
    """What a request for a path and method does: its handler, what it adds, and the scopes of which
    the caller must have one. The first is the one with the least rights.
    """

    handler: Handler
    scopes: tuple[Scope, ...]
    intake: Intake = Intake.NOTHING


def _reads(handler: Handler, scopes: tuple[Scope, ...] = MAY_READ) -> GraphOperation:
    return GraphOperation(handler, scopes)


def _changes(handler: Handler, scopes: tuple[Scope, ...] = MAY_CHANGE) -> GraphOperation:
    """A change that is possible under pressure: clients make them to read mail and free space."""
    return GraphOperation(handler, scopes)


def _adds(handler: Handler) -> GraphOperation:
    return GraphOperation(handler, MAY_CHANGE, Intake.CONTENT)


def _sends(handler: Handler) -> GraphOperation:
    return GraphOperation(handler, MAY_SEND, Intake.MESSAGE)


class RouteMatch(Struct, frozen=True):
    """The operation, and the values of the {parameters} in its path."""

    operation: GraphOperation
    path_parameters: Mapping[str, str]


def with_keys(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path with OData's parentheses as segments: messages('1') becomes messages/1."""
    if not any(segment.endswith("')") for segment in segments):
        return segments
    found: list[str] = []
    for segment in segments:
        name, opening, key = segment.partition("('")
        if opening and name and key.endswith("')"):
            found += (name, key.removesuffix("')").replace("''", "'"))
        else:
            found.append(segment)
    return tuple(found)


def find_route(method: str, segments: tuple[str, ...]) -> RouteMatch:
    """Return the operation of `method` on the path `segments`. Raises ApiError 404, 405, 501."""
    segments = _innermost_folder(segments)
    for pattern, by_method in _ROUTES:
        parameters = _match_pattern(pattern, segments)
        if parameters is None:
            continue
        if isinstance(by_method, str):
            raise not_implemented(by_method)
        if method == "POST" and (what := _NO_POST.get("/".join(pattern))):
            raise not_implemented(what)
        return RouteMatch(_operation(method, by_method), parameters)
    path = "/".join(segments)
    message = f"Resource not found for the path {quoted(path)}."
    raise ApiError(404, "ResourceNotFound", message)


def find_users_route(method: str) -> RouteMatch:
    """Return the operation of `method` on /users. Raises ApiError 405."""
    return RouteMatch(_operation(method, _USERS), {})


def find_subscriptions_route(method: str) -> RouteMatch:
    """Return the operation of `method` on /subscriptions. Raises ApiError 501."""
    if method != "GET":
        raise not_implemented("The resource subscription")
    return RouteMatch(_reads(mailbox_settings.list_subscriptions), {})


def _operation(method: str, by_method: Mapping[str, GraphOperation]) -> GraphOperation:
    operation = by_method.get(method)
    if operation is None:
        raise ApiError(
            405,
            "Request_BadRequest",
            "Specified HTTP method is not allowed for the request target.",
            headers={"allow": ", ".join(by_method)},
        )
    return operation


def _innermost_folder(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the parent folders from mailFolders/{id}/childFolders/{id}: an id is enough."""
    while len(segments) > 3 and segments[0].lower() == "mailfolders":
        if segments[2].lower() != "childfolders" or _is_function(segments[3]):
            break
        segments = (segments[0], *segments[3:])
    return segments


def _is_function(segment: str) -> bool:
    """Return whether a path segment after a collection's name is no id."""
    return segment.lower().removeprefix(_NAMESPACE) in ("$count", "delta", "delta()")


def _match_pattern(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    """Return the path parameters if `segments` match `pattern`, else None."""
    if pattern[-1:] == (_ANY_REST,):
        pattern = pattern[:-1]
        segments = segments[: len(pattern)]
    if len(pattern) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            parameters[expected[1:-1]] = segment
        elif segment.lower().removeprefix(_NAMESPACE) != expected:
            return None
    return parameters


def _pattern(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")) if path else ()


_USERS: Mapping[str, GraphOperation] = {"GET": _reads(users.list_users, MAY_READ_USER)}
_ONE_MESSAGE: Mapping[str, GraphOperation] = {
    "GET": _reads(messages.get_message),
    "PATCH": _changes(messages.change_message),
    "DELETE": _changes(messages.delete_message),
}
_MESSAGES: Mapping[str, GraphOperation] = {
    "GET": _reads(messages.list_messages),
    "POST": _adds(messages.create_message),
}
_MESSAGES_DELTA: Mapping[str, GraphOperation] = {"GET": _reads(delta.list_message_changes)}
_FOLDERS_DELTA: Mapping[str, GraphOperation] = {"GET": _reads(delta.list_folder_changes)}
_ONE_FOLDER: Mapping[str, GraphOperation] = {
    "GET": _reads(mail_folders.get_folder),
    "PATCH": _changes(mail_folders.change_folder),
    "DELETE": _changes(mail_folders.delete_folder),
}
_MESSAGE_ROUTES: Mapping[str, Mapping[str, GraphOperation]] = {
    "messages": _MESSAGES,
    "messages/$count": {"GET": _reads(messages.count_messages)},
    "messages/delta": _MESSAGES_DELTA,
    "messages/delta()": _MESSAGES_DELTA,
    "messages/{message}": _ONE_MESSAGE,
    "messages/{message}/send": {"POST": _sends(send_mail.send_draft)},
    "messages/{message}/reply": {"POST": _sends(replies.reply)},
    "messages/{message}/replyall": {"POST": _sends(replies.reply_all)},
    "messages/{message}/forward": {"POST": _sends(replies.forward)},
    "messages/{message}/createreply": {"POST": _adds(replies.create_reply)},
    "messages/{message}/createreplyall": {"POST": _adds(replies.create_reply_all)},
    "messages/{message}/createforward": {"POST": _adds(replies.create_forward)},
    "messages/{message}/move": {"POST": _changes(messages.move_message)},
    "messages/{message}/copy": {"POST": _adds(messages.copy_message)},
    "messages/{message}/permanentdelete": {"POST": _changes(messages.remove_message)},
    "messages/{message}/attachments": {
        "GET": _reads(attachments.list_attachments),
        "POST": _adds(attachments.add_attachment),
    },
    "messages/{message}/attachments/createuploadsession": {
        "POST": _adds(attachments.create_upload_session),
    },
    "messages/{message}/attachments/$count": {"GET": _reads(attachments.count_attachments)},
    "messages/{message}/attachments/{attachment}": {
        "GET": _reads(attachments.get_attachment),
        "DELETE": _changes(attachments.delete_attachment),
    },
    "messages/{message}/attachments/{attachment}/$value": {"GET": _reads(attachments.get_value)},
    "messages/{message}/$value": {
        "GET": _reads(messages.get_mime),
        "PUT": _adds(messages.replace_mime),
    },
}
_FOLDER_ROUTES: Mapping[str, Mapping[str, GraphOperation]] = {
    "mailfolders": {
        "GET": _reads(mail_folders.list_folders),
        "POST": _changes(mail_folders.create_folder),
    },
    "mailfolders/$count": {"GET": _reads(mail_folders.count_folders)},
    "mailfolders/delta": _FOLDERS_DELTA,
    "mailfolders/delta()": _FOLDERS_DELTA,
    "mailfolders/{folder}": _ONE_FOLDER,
    "mailfolders/{folder}/childfolders": {
        "GET": _reads(mail_folders.list_folders),
        "POST": _changes(mail_folders.create_folder),
    },
    "mailfolders/{folder}/childfolders/$count": {"GET": _reads(mail_folders.count_folders)},
    "mailfolders/{folder}/move": {"POST": _changes(mail_folders.move_folder)},
    "mailfolders/{folder}/copy": {"POST": _adds(mail_folders.copy_folder)},
    "mailfolders/{folder}/permanentdelete": {"POST": _changes(mail_folders.remove_folder)},
}
_TIME_ZONES: Mapping[str, GraphOperation] = {
    "GET": _reads(mailbox_settings.list_time_zones, MAY_READ_USER),
}
_SETTINGS_ROUTES: Mapping[str, Mapping[str, GraphOperation]] = {
    "mailboxsettings": {
        "GET": _reads(mailbox_settings.get_settings, mailbox_settings.MAY_READ),
        "PATCH": _changes(mailbox_settings.change_settings, mailbox_settings.MAY_CHANGE),
    },
    "inferenceclassification/overrides": {"GET": _reads(mailbox_settings.list_overrides)},
    "outlook/mastercategories": {
        "GET": _reads(categories.list_categories, mailbox_settings.MAY_READ),
        "POST": _changes(categories.create_category, mailbox_settings.MAY_CHANGE),
    },
    "outlook/mastercategories/{category}": {
        "GET": _reads(categories.get_category, mailbox_settings.MAY_READ),
        "PATCH": _changes(categories.change_category, mailbox_settings.MAY_CHANGE),
        "DELETE": _changes(categories.delete_category, mailbox_settings.MAY_CHANGE),
    },
    "mailfolders/{folder}/messagerules": {"GET": _reads(mail_folders.list_rules)},
    "outlook/supportedtimezones": _TIME_ZONES,
    "outlook/supportedtimezones()": _TIME_ZONES,
    "mailboxsettings/{setting}": {
        "GET": _reads(mailbox_settings.get_setting, mailbox_settings.MAY_READ),
    },
}
# Lists that are empty here, and to which Graph adds.
_NO_POST: Mapping[str, str] = {
    "inferenceclassification/overrides": "The resource inferenceClassificationOverride",
    "mailfolders/{folder}/messagerules": "The resource messageRule",
}
_NOT_IMPLEMENTED_MESSAGE_ROUTES: Mapping[str, str] = {
    "messages/{message}/extensions/*": "The resource openTypeExtension",
}
_NOT_IMPLEMENTED: Mapping[str, str] = {
    **_NOT_IMPLEMENTED_MESSAGE_ROUTES,
    **dict.fromkeys(
        ("mailfolders/{folder}/childfolders/delta", "mailfolders/{folder}/childfolders/delta()"),
        "A delta query of child folders",
    ),
    "mailfolders/{folder}/messagerules/*": "The resource messageRule",
    **{
        f"mailfolders/{{folder}}/{path}": what
        for path, what in _NOT_IMPLEMENTED_MESSAGE_ROUTES.items()
    },
    "inferenceclassification/*": "The resource inferenceClassification",
    "outlook/*": "The resource outlookUser",
    "getmailtips": "getMailTips",
    **dict.fromkeys(
        ("calendar/*", "calendars/*", "calendarview/*", "events/*"), "The resource calendar"
    ),
    **dict.fromkeys(("contacts/*", "contactfolders/*"), "The resource contact"),
}
_ROUTES: tuple[tuple[tuple[str, ...], Mapping[str, GraphOperation] | str], ...] = (
    (_pattern(""), {"GET": _reads(users.get_user, MAY_READ_USER)}),
    (_pattern("sendmail"), {"POST": _sends(send_mail.send_mail)}),
    (
        _pattern("translateexchangeids"),
        {"POST": _reads(translate_ids.translate_ids, (Scope.USER_READ, *MAY_READ))},
    ),
    *((_pattern(path), by_method) for path, by_method in _SETTINGS_ROUTES.items()),
    *((_pattern(path), what) for path, what in _NOT_IMPLEMENTED.items()),
    *((_pattern(path), by_method) for path, by_method in _MESSAGE_ROUTES.items()),
    *((_pattern(path), by_method) for path, by_method in _FOLDER_ROUTES.items()),
    *(
        (_pattern(f"mailfolders/{{folder}}/{path}"), by_method)
        for path, by_method in _MESSAGE_ROUTES.items()
    ),
)
