"""The parameters of sendMail, and of the actions that reply and forward."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import Account
from relay.base.message.properties import MessageProperties
from relay.front_door.graph import errors, json_values
from relay.front_door.graph.message_parser import ParsedMessage, parse_message

COMMENT_CHARACTERS_MAX = 1024 * 1024
_NOT_FLAGGED = "notFlagged"


def parse_send_mail(body: Mapping[str, Any], account: Account) -> tuple[MessageProperties, bool]:
    """Read sendMail's parameters: the message, and whether it is saved to Sent Items."""
    parameters = json_values.read_parameters(body, _OF_SEND_MAIL, "sendMail", needed=("message",))
    parsed = parse_message(parameters["message"], account, path="message")
    if parsed.flag.get("status", _NOT_FLAGGED) != _NOT_FLAGGED:
        raise json_values.unsupported("message.flag.flagStatus", "sendMail does not support flags")
    return parsed.properties, parameters.get("savetosentitems") is not False


class AnswerParameters(Struct, frozen=True):
    """The parameters of an action that replies or forwards.

    If `has_body`, the message has a body, which replaces the comment and the quote.
    """

    message: ParsedMessage
    comment: str
    has_body: bool


def parse_answer(
    body: Mapping[str, Any], account: Account, *, action: str, is_forward: bool
) -> AnswerParameters:
    """Read the parameters of reply, replyAll, forward and their create actions; all are
    optional.
    """
    known = _OF_FORWARD if is_forward else _OF_REPLY
    parameters = json_values.read_parameters(body, known, action)
    comment = parameters.get("comment") or ""
    fields = parameters.get("message") or {}
    fields = {name: value for name, value in fields.items() if name != "body" or value is not None}
    has_body = "body" in fields
    if comment and has_body:
        raise errors.INVALID_REQUEST("comment and message.body: found both.")
    parsed = parse_message(fields, account, path="message")
    to = parameters.get("torecipients")
    if to and parsed.fields.get("to"):
        raise errors.INVALID_REQUEST("toRecipients and message.toRecipients: found both.")
    if to:
        parsed = replace(parsed, fields={**parsed.fields, "to": to})
    return AnswerParameters(parsed, comment, has_body)


_OF_SEND_MAIL: json_values.Parameters = {
    "message": ("message", json_values.read_object),
    "savetosentitems": ("saveToSentItems", json_values.read_boolean),
}
_OF_REPLY: json_values.Parameters = {
    "comment": ("comment", partial(json_values.read_body_text, longest=COMMENT_CHARACTERS_MAX)),
    "message": ("message", json_values.read_object),
}
_OF_FORWARD: json_values.Parameters = {
    **_OF_REPLY,
    "torecipients": ("toRecipients", json_values.read_recipients),
}
