"""People in a message's JSON, and who may be named as its author.

On the path: the parsers of messages read recipients by it; MIME is checked by the same rules.
Holds: addresses are valid, names fit for a header; nobody sends from another's address unless the
account's `send_as` lists it.
Fails: ApiError 400 ErrorInvalidRecipients that names the path; 403 ErrorSendAsDenied.
Standards: Graph's recipient and emailAddress; RFC 5322 3.6.2 (From, Sender).
"""

from collections.abc import Mapping
from typing import Any

from relay.accounts import Account
from relay.graph.json_values import an_array, an_object, header_text, only_known
from relay.http.errors import ApiError, shown
from relay.message.address import AddressError, parse_mailbox
from relay.message.properties import MessageProperties, Person

RECIPIENTS_MAX = 500
_NAME_CHARACTERS = 320
_ADDRESS_CHARACTERS = 320


def read_people(value: object, path: str) -> tuple[Person, ...]:
    """Read an array of recipients. Raises ApiError."""
    items = an_array(value, path)
    if len(items) > RECIPIENTS_MAX:
        raise _too_many_recipients(len(items))
    return tuple(_person(item, f"{path}[{index}]") for index, item in enumerate(items))


def read_originator(value: object, path: str) -> Person | None:
    """Read `from` or `sender`; null is nobody. Raises ApiError."""
    return None if value is None else _person(value, path)


def check_own(person: Person | None, account: Account, *, path: str) -> None:
    """Raise ErrorSendAsDenied unless the account may send mail from `person`."""
    if person is not None and not account.may_send_as(person.address):
        raise ApiError(
            403,
            "ErrorSendAsDenied",
            f"{path}: the account {account.address} does not have the right to send mail from "
            f"{shown(person.address)}: it is neither its address nor an alias, and the account's "
            "send_as does not list it.",
        )


def on_behalf(fields: Mapping[str, Any], account: Account) -> dict[str, Any]:
    """Return the sender where only `from` is given: the account itself for another's address, None
    for its own.

    Who names that address as the sender as well sends as it, and not on behalf.
    """
    author = fields.get("from_")
    if author is None or fields.get("sender") is not None:
        return {}
    return {"sender": None if account.owns(author.address) else Person(account.address)}


def author_on_behalf(properties: MessageProperties, account: Account) -> str:
    """Return the address in From where that is another's and no sender is named, else ""."""
    author = properties.from_
    if author is None or properties.sender is not None or account.owns(author.address):
        return ""
    return author.address


def check_recipients_count(properties: MessageProperties) -> None:
    """Raise ErrorInvalidRecipients when a message has more recipients than Graph takes."""
    count = len(properties.to) + len(properties.cc) + len(properties.bcc)
    if count > RECIPIENTS_MAX:
        raise _too_many_recipients(count)


def check_has_recipients(properties: MessageProperties) -> None:
    """Raise ErrorInvalidRecipients when nobody would get the message."""
    if not (properties.to or properties.cc or properties.bcc):
        raise ApiError(
            400,
            "ErrorInvalidRecipients",
            "At least one recipient is not valid., A message can't be sent because it contains no "
            "recipients: toRecipients, ccRecipients and bccRecipients are empty.",
        )


def _person(value: object, path: str) -> Person:
    given = an_object(value, path)
    only_known(given, ("emailAddress",), path=path, resource="microsoft.graph.recipient")
    path = f"{path}.emailAddress"
    if given.get("emailAddress") is None:
        raise _invalid_recipient(f"{path} is missing")
    inner = an_object(given["emailAddress"], path)
    only_known(inner, ("address", "name"), path=path, resource="microsoft.graph.emailAddress")
    name = header_text(inner.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    path = f"{path}.address"
    text = header_text(inner.get("address"), path, longest=_ADDRESS_CHARACTERS).strip(" ")
    if not text:
        raise _invalid_recipient(f"{path} is missing or empty")
    try:
        return Person(address=parse_mailbox(text, smtputf8=True), name=name)
    except AddressError as error:
        raise _invalid_recipient(f"{path}: {shown(text)} is no mail address: {error}") from None


def _too_many_recipients(count: int) -> ApiError:
    message = (
        f"The message has {count} recipients; the maximum in to, cc and bcc is {RECIPIENTS_MAX}."
    )
    return ApiError(400, "ErrorInvalidRecipients", message)


def _invalid_recipient(reason: str) -> ApiError:
    message = f"At least one recipient is not valid., {reason}."
    return ApiError(400, "ErrorInvalidRecipients", message)
