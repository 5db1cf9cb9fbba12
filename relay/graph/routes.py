"""The ASGI application for /v1.0 and /beta: find the mailbox and the handler of a request.

That happens, and intake under pressure is rejected, before the body is read. Names of resources and
actions match in any case; the prefix `microsoft.graph.` is accepted. An unknown path is a 404, a
resource of Graph that is not implemented a 501, another method a 405 with Allow (RFC 9110 15.5.5,
15.5.6).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from starlette.responses import Response

from relay.accounts.account import Account, AccountDirectory
from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.graph import attachments, mail_folders, messages, send_mail, users
from relay.graph.graph_request import GraphDependencies, GraphRequest, api_error, not_implemented
from relay.graph.upload_sessions import serve_upload
from relay.http.errors import ApiError, UnansweredError, quoted, service_unavailable
from relay.http.gateway import Gateway, RequestLimits
from relay.http.http_request import HttpRequest, bearer_account
from relay.mailbox.api import MailStore
from relay.mailbox.types import OutcomeUnknownError, StoreError
from relay.pressure import (
    MAILBOX_REASONS,
    QUEUE_REASONS,
    Pressure,
    PressureReason,
    PressureState,
    describe,
)
from relay.settings.tree import HttpSettings

Handler = Callable[[GraphRequest], Awaitable[Response]]
_HELD_BODIES = 4  # bodies of the maximum size that may be in memory at once
_READY_RETRY_S = 5
_RETRY_S = 30
_UPLOAD = ("v1.0", "uploads", "{token}")
_OUTSIDE_MAILBOXES = {"$batch": "$batch", "subscriptions": "The resource subscription"}
_NAMESPACE = "microsoft.graph."
_ANY_REST = "*"  # at the end of a pattern: any number of segments


def create_app(
    store: MailStore,
    accounts: AccountDirectory,
    *,
    clock: Clock,
    hostname: str,
    http: HttpSettings,
    crash: CrashPoints,
    ready: Callable[[], str],
    pressure: Pressure | None = None,
) -> Gateway:
    """Return the application for /v1.0 and /beta.

    `http` gives the limits and the public URL. `ready` returns "", or the reason for a 503. Under
    `pressure` requests that add messages or content are rejected.
    """
    pressure = pressure or Pressure()
    dependencies = GraphDependencies(
        store=store,
        clock=clock,
        ids=Ids(clock),
        hostname=hostname,
        public_url=http.public_url,
        crash=crash,
        max_upload=http.max_upload,
    )

    async def handle(request: HttpRequest) -> Response:
        segments = _with_keys(request.segments)
        is_upload = len(segments) == len(_UPLOAD) and segments[1].lower() == _UPLOAD[1]
        if not is_upload:
            account = bearer_account(request.headers, accounts, realm=hostname)
        if reason := ready():
            raise service_unavailable("ResourceUnhealthy", reason, retry_after_s=_READY_RETRY_S)
        try:
            if is_upload:  # the URL's own token authorizes it
                if request.method == "PUT":
                    check_pressure(pressure.state, Intake.CONTENT)
                return await serve_upload(dependencies, request, segments[2], accounts=accounts)
            rest = _path_in_mailbox(segments[1:], account, accounts)
            match = find_route(request.method, rest)
            check_pressure(pressure.state, match.intake)
            return await match.handler(
                GraphRequest(dependencies, request, account, match.path_parameters)
            )
        except OutcomeUnknownError as error:
            raise UnansweredError(str(error)) from error
        except StoreError as error:
            raise api_error(error) from error

    limits = RequestLimits(body_bytes=http.max_body, held_bytes=_HELD_BODIES * http.max_body)
    return Gateway(handle, clock=clock, limits=limits)


class Intake(Enum):
    """What a request adds: a message to the queue, content to a mailbox, or neither."""

    NOTHING = auto()
    CONTENT = auto()
    MESSAGE = auto()


_REJECTED_FOR = {
    Intake.NOTHING: frozenset[PressureReason](),
    Intake.CONTENT: MAILBOX_REASONS | {PressureReason.MEMORY},
    Intake.MESSAGE: MAILBOX_REASONS | QUEUE_REASONS,
}


def check_pressure(state: PressureState, intake: Intake) -> None:
    """Raise ApiError if the relay does not accept this intake at the present pressure level.

    507 if the disk of the mailboxes is full (RFC 4918 11.5), else 503; both with Retry-After.
    Reading, moving and deleting are possible at every level.
    """
    if (reason := state.refusing(_REJECTED_FOR[intake])) is None:
        return
    message = f"Nothing new is taken now: {describe(reason)}. Try again later."
    if reason in MAILBOX_REASONS:
        headers = {"retry-after": str(_RETRY_S)}
        raise ApiError(507, "ErrorInsufficientResources", message, headers=headers)
    raise service_unavailable("ResourceUnhealthy", message, retry_after_s=_RETRY_S)


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """A handler, and the values of the {parameters} in its path."""

    handler: Handler
    path_parameters: Mapping[str, str]

    @property
    def intake(self) -> Intake:
        """What the request adds."""
        if self.handler in _MESSAGE_INTAKE:
            return Intake.MESSAGE
        return Intake.CONTENT if self.handler in _CONTENT_INTAKE else Intake.NOTHING


def _with_keys(segments: tuple[str, ...]) -> tuple[str, ...]:
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


def _path_in_mailbox(
    segments: tuple[str, ...], account: Account, accounts: AccountDirectory
) -> tuple[str, ...]:
    """Return the rest of the path after /me or /users/{address}.

    Raises ApiError: 403 for another account's mailbox, 404 for an unknown user or path, 501 for
    resources outside of mailboxes.
    """
    first = segments[0].lower() if segments else ""
    if first == "me":
        return segments[1:]
    if first in _OUTSIDE_MAILBOXES:
        raise not_implemented(_OUTSIDE_MAILBOXES[first])
    if first != "users" or len(segments) == 1:
        path = "/".join(segments)
        message = f"Resource not found for the path {quoted(path)}; mail is under /me and /users/…."
        raise ApiError(404, "ResourceNotFound", message)
    owner = accounts.by_address(segments[1])
    if owner is None:
        message = f"The requested user {quoted(segments[1])} is invalid."
        raise ApiError(404, "ErrorInvalidUser", message)
    if owner.address != account.address:
        message = "Access is denied. Check credentials and try again."
        raise ApiError(403, "ErrorAccessDenied", message)
    return segments[2:]


def find_route(method: str, segments: tuple[str, ...]) -> RouteMatch:
    """Return the handler of `method` on the path `segments`. Raises ApiError 404, 405, 501."""
    segments = _innermost_folder(segments)
    for pattern, by_method in _ROUTES:
        parameters = _match_pattern(pattern, segments)
        if parameters is None:
            continue
        if isinstance(by_method, str):
            raise not_implemented(by_method)
        handler = by_method.get(method)
        if handler is None:
            raise ApiError(
                405,
                "Request_BadRequest",
                "Specified HTTP method is not allowed for the request target.",
                headers={"allow": ", ".join(by_method)},
            )
        return RouteMatch(handler, parameters)
    path = "/".join(segments)
    message = f"Resource not found for the path {quoted(path)}."
    raise ApiError(404, "ResourceNotFound", message)


def _innermost_folder(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the parent folders from mailFolders/{id}/childFolders/{id}: an id is enough."""
    while len(segments) > 3 and segments[0].lower() == "mailfolders":
        if segments[2].lower() != "childfolders":
            break
        segments = (segments[0], *segments[3:])
    return segments


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


_ONE_MESSAGE: Mapping[str, Handler] = {
    "GET": messages.get_message,
    "PATCH": messages.change_message,
    "DELETE": messages.delete_message,
}
_MESSAGES: Mapping[str, Handler] = {
    "GET": messages.list_messages,
    "POST": messages.create_message,
}
_ONE_FOLDER: Mapping[str, Handler] = {
    "GET": mail_folders.get_folder,
    "PATCH": mail_folders.change_folder,
    "DELETE": mail_folders.delete_folder,
}
_MESSAGE_ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "messages": _MESSAGES,
    "messages/$count": {"GET": messages.count_messages},
    "messages/{message}": _ONE_MESSAGE,
    "messages/{message}/send": {"POST": send_mail.send_draft},
    "messages/{message}/move": {"POST": messages.move_message},
    "messages/{message}/copy": {"POST": messages.copy_message},
    "messages/{message}/permanentdelete": {"POST": messages.remove_message},
    "messages/{message}/attachments": {
        "GET": attachments.list_attachments,
        "POST": attachments.add_attachment,
    },
    "messages/{message}/attachments/createuploadsession": {
        "POST": attachments.create_upload_session,
    },
    "messages/{message}/attachments/{attachment}": {
        "GET": attachments.get_attachment,
        "DELETE": attachments.delete_attachment,
    },
    "messages/{message}/attachments/{attachment}/$value": {"GET": attachments.get_value},
    "messages/{message}/$value": {"GET": messages.get_mime, "PUT": messages.replace_mime},
}
_FOLDER_ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "mailfolders": {"GET": mail_folders.list_folders, "POST": mail_folders.create_folder},
    "mailfolders/{folder}": _ONE_FOLDER,
    "mailfolders/{folder}/childfolders": {
        "GET": mail_folders.list_children,
        "POST": mail_folders.create_folder,
    },
    "mailfolders/{folder}/move": {"POST": mail_folders.move_folder},
    "mailfolders/{folder}/permanentdelete": {"POST": mail_folders.remove_folder},
}
_NOT_IMPLEMENTED_MESSAGE_ROUTES: Mapping[str, str] = {
    "messages/delta": "A delta query",
    "messages/delta()": "A delta query",
    **{
        f"messages/{{message}}/{name.lower()}": name
        for name in (
            *("reply", "replyAll", "forward"),
            *("createReply", "createReplyAll", "createForward"),
        )
    },
    "messages/{message}/extensions/*": "The resource openTypeExtension",
    "messages/{message}/attachments/$count": "$count of attachments",
}
_NOT_IMPLEMENTED: Mapping[str, str] = {
    **_NOT_IMPLEMENTED_MESSAGE_ROUTES,
    "mailfolders/delta": "A delta query",
    "mailfolders/delta()": "A delta query",
    "mailfolders/$count": "$count of folders",
    "mailfolders/{folder}/copy": "copy of a mailFolder",
    "mailfolders/{folder}/messagerules/*": "The resource messageRule",
    **{
        f"mailfolders/{{folder}}/{path}": what
        for path, what in _NOT_IMPLEMENTED_MESSAGE_ROUTES.items()
    },
    "mailboxsettings/*": "The resource mailboxSettings",
    "inferenceclassification/*": "The resource inferenceClassification",
    "outlook/*": "The resource outlookUser",
    "getmailtips": "getMailTips",
    **dict.fromkeys(
        ("calendar/*", "calendars/*", "calendarview/*", "events/*"), "The resource calendar"
    ),
    **dict.fromkeys(("contacts/*", "contactfolders/*"), "The resource contact"),
}
_MESSAGE_INTAKE: frozenset[Handler] = frozenset({send_mail.send_mail, send_mail.send_draft})
# PATCH and move are not here: clients use them to read mail and to free space.
_CONTENT_INTAKE: frozenset[Handler] = frozenset(
    {
        messages.create_message,
        messages.replace_mime,
        messages.copy_message,
        attachments.add_attachment,
        attachments.create_upload_session,
    }
)
_ROUTES: tuple[tuple[tuple[str, ...], Mapping[str, Handler] | str], ...] = (
    (_pattern(""), {"GET": users.get_user}),
    (_pattern("sendmail"), {"POST": send_mail.send_mail}),
    *((_pattern(path), what) for path, what in _NOT_IMPLEMENTED.items()),
    *((_pattern(path), by_method) for path, by_method in _MESSAGE_ROUTES.items()),
    *((_pattern(path), by_method) for path, by_method in _FOLDER_ROUTES.items()),
    *(
        (_pattern(f"mailfolders/{{folder}}/{path}"), by_method)
        for path, by_method in _MESSAGE_ROUTES.items()
    ),
)
