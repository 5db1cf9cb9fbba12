"""Which handler a method and a path mean.

On the path: app asks it with the part of the path behind the mailbox's owner.
Holds: names of resources and actions match in any case; `microsoft.graph.` before one is accepted.
Fails: ApiError 404 for a path that is not here, 501 where Graph has it, 405 with Allow for a method
that is not.
Standards: RFC 9110 15.5.5, 15.5.6; Graph's URL conventions.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from starlette.responses import Response

from relay.graph import attachments, mail_folders, messages, send_mail
from relay.graph.graph_request import Visit
from relay.http.errors import ApiError, shown, try_later
from relay.pressure import OF_MAILBOXES, OF_QUEUE, Reason, State, words_of

_RETRY_S = 30


class Brings(Enum):
    """What a request brings: a message for the queue, content for a mailbox, or neither."""

    NOTHING = auto()
    CONTENT = auto()
    MESSAGE = auto()


_SHORT_OF = {
    Brings.NOTHING: frozenset[Reason](),
    Brings.CONTENT: OF_MAILBOXES | {Reason.MEMORY},
    Brings.MESSAGE: OF_MAILBOXES | OF_QUEUE,
}


def check_room(state: State, brings: Brings) -> None:
    """Raise ApiError for what the relay takes on no more now."""
    if (reason := state.refusing(_SHORT_OF[brings])) is None:
        return
    message = f"Nothing new is taken now: {words_of(reason)}. Try again later."
    if reason in OF_MAILBOXES:
        headers = {"retry-after": str(_RETRY_S)}
        raise ApiError(507, "ErrorInsufficientResources", message, headers=headers)
    raise try_later("ResourceUnhealthy", message, after_s=_RETRY_S)


Handler = Callable[[Visit], Awaitable[Response]]
_NAMESPACE = "microsoft.graph."
_WHATEVER = "*"  # last in a pattern: any segments, or none


@dataclass(frozen=True, slots=True)
class Match:
    """The handler, and what the path has in the places that the route leaves open."""

    handler: Handler
    names: Mapping[str, str]

    @property
    def brings(self) -> Brings:
        """What the request brings into the house."""
        if self.handler in _BRING_MESSAGES:
            return Brings.MESSAGE
        return Brings.CONTENT if self.handler in _BRING_CONTENT else Brings.NOTHING


def with_keys(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path with its keys as segments: messages('1') is messages/1, as OData writes it."""
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


def find_route(method: str, segments: tuple[str, ...]) -> Match:
    """Return what `method` on the path `segments` means."""
    segments = _without_parents(segments)
    for pattern, by_method in _ROUTES:
        names = _names(pattern, segments)
        if names is None:
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
        return Match(handler, names)
    path = "/".join(segments)
    message = f"Resource not found for the path {shown(path)}."
    raise ApiError(404, "ResourceNotFound", message)


def not_implemented(what: str) -> ApiError:
    """Return the refusal of what Graph has and Relay has not."""
    return ApiError(501, "NotImplemented", f"{what} is not implemented.")


def _without_parents(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path to the innermost folder: an id says all, whatever folders it is within."""
    while len(segments) > 3 and segments[0].lower() == "mailfolders":
        if segments[2].lower() != "childfolders":
            break
        segments = (segments[0], *segments[3:])
    return segments


def _names(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    """Return the names that make `segments` fit `pattern`, None if nothing does."""
    if pattern[-1:] == (_WHATEVER,):
        pattern = pattern[:-1]
        segments = segments[: len(pattern)]
    if len(pattern) != len(segments):
        return None
    names: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            names[expected[1:-1]] = segment
        elif segment.lower().removeprefix(_NAMESPACE) != expected:
            return None
    return names


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
_OF_MESSAGES: Mapping[str, Mapping[str, Handler]] = {
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
_OF_FOLDERS: Mapping[str, Mapping[str, Handler]] = {
    "mailfolders": {"GET": mail_folders.list_folders, "POST": mail_folders.create_folder},
    "mailfolders/{folder}": _ONE_FOLDER,
    "mailfolders/{folder}/childfolders": {
        "GET": mail_folders.list_children,
        "POST": mail_folders.create_folder,
    },
    "mailfolders/{folder}/move": {"POST": mail_folders.move_folder},
    "mailfolders/{folder}/permanentdelete": {"POST": mail_folders.remove_folder},
}
_NOT_OF_MESSAGES: Mapping[str, str] = {
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
_NOT_HERE: Mapping[str, str] = {
    **_NOT_OF_MESSAGES,
    "mailfolders/delta": "A delta query",
    "mailfolders/delta()": "A delta query",
    "mailfolders/$count": "$count of folders",
    "mailfolders/{folder}/copy": "copy of a mailFolder",
    "mailfolders/{folder}/messagerules/*": "The resource messageRule",
    **{f"mailfolders/{{folder}}/{path}": what for path, what in _NOT_OF_MESSAGES.items()},
    "mailboxsettings/*": "The resource mailboxSettings",
    "inferenceclassification/*": "The resource inferenceClassification",
    "outlook/*": "The resource outlookUser",
    "getmailtips": "getMailTips",
    **dict.fromkeys(
        ("calendar/*", "calendars/*", "calendarview/*", "events/*"), "The resource calendar"
    ),
    **dict.fromkeys(("contacts/*", "contactfolders/*"), "The resource contact"),
}
_BRING_MESSAGES: frozenset[Handler] = frozenset({send_mail.send_mail, send_mail.send_draft})
# Not what changes or moves a message: that is how mail is read, and room is made.
_BRING_CONTENT: frozenset[Handler] = frozenset(
    {
        messages.create_message,
        messages.replace_mime,
        messages.copy_message,
        attachments.add_attachment,
        attachments.create_upload_session,
    }
)
_ROUTES: tuple[tuple[tuple[str, ...], Mapping[str, Handler] | str], ...] = (
    (_pattern(""), {"GET": messages.get_user}),
    (_pattern("sendmail"), {"POST": send_mail.send_mail}),
    *((_pattern(path), what) for path, what in _NOT_HERE.items()),
    *((_pattern(path), by_method) for path, by_method in _OF_MESSAGES.items()),
    *((_pattern(path), by_method) for path, by_method in _OF_FOLDERS.items()),
    *(
        (_pattern(f"mailfolders/{{folder}}/{path}"), by_method)
        for path, by_method in _OF_MESSAGES.items()
    ),
)
