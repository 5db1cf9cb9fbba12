"""Recipients and originators in a message's JSON: parsing, limits, and the right to send as.

The limit of recipients per message is 500 in to, cc and bcc together (check_recipients_count()).
Addresses are valid and names fit into a header field. From and Sender of what is sent must be the
account's own or listed in its `send_as` (403 ErrorSendAsDenied). RFC 5322 3.6.2.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from relay.base.accounts.account import Account
from relay.base.message.address import AddressError, parse_odd_mailbox
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.front_door.graph.json_values import read_array, read_header_text, read_object
from relay.front_door.http.errors import ApiError, quoted

RECIPIENTS_MAX = 500
_NAME_CHARACTERS = 320
_ADDRESS_CHARACTERS = 320


def read_recipients(value: object, path: str) -> tuple[EmailAddress, ...]:
    """Read an array of recipients. Raises ApiError."""
    items = read_array(value, path)
    if len(items) > RECIPIENTS_MAX:
        raise _too_many_recipients(len(items))
    return tuple(_recipient(item, f"{path}[{index}]") for index, item in enumerate(items))


def read_originator(value: object, path: str) -> EmailAddress | None:
    """Read `from` or `sender`; null gives None. Raises ApiError."""
    return None if value is None else _recipient(value, path)


def check_own(originator: EmailAddress | None, account: Account, *, path: str) -> None:
    """Raise ErrorSendAsDenied unless the account may send mail from `originator`."""
    if originator is not None and not account.may_send_as(originator.address):
        raise ApiError(
            403,
            "ErrorSendAsDenied",
            f"{path}: the account {account.address} does not have the right to send mail from "
            f"{quoted(originator.address)}: it is neither its address nor an alias, and the "
            "account's send_as does not list it.",
        )


def check_originators(properties: MessageProperties, account: Account, *, prefix: str = "") -> None:
    """Run check_own() on From and Sender of a message that is to be sent."""
    check_own(properties.from_, account, path=f"{prefix}from")
    check_own(properties.sender, account, path=f"{prefix}sender")


def sender_on_behalf(fields: Mapping[str, Any], account: Account) -> dict[str, Any]:
    """Return the `sender` field if only `from` is given: the account if `from` is another address
    that it may use (send on behalf), else None.

    If `sender` is given as well, the message is sent as that address, not on behalf.
    """
    author = fields.get("from_")
    if author is None or fields.get("sender") is not None:
        return {}
    is_other = not account.owns(author.address) and account.may_send_as(author.address)
    return {"sender": EmailAddress(account.address) if is_other else None}


def author_on_behalf(properties: MessageProperties, account: Account) -> str:
    """Return the address in From if it is not the account's and there is no sender, else ""."""
    author = properties.from_
    if author is None or properties.sender is not None or account.owns(author.address):
        return ""
    return author.address


def check_recipients_count(properties: MessageProperties) -> None:
    """The limit of recipients per message: raise ErrorInvalidRecipients beyond 500."""
    count = len(properties.to) + len(properties.cc) + len(properties.bcc)
    if count > RECIPIENTS_MAX:
        raise _too_many_recipients(count)


def reply_recipients(
    original: MessageProperties, account: Account, *, to_all: bool
) -> tuple[tuple[EmailAddress, ...], tuple[EmailAddress, ...]]:
    """Return To and Cc of a reply to a message in the account's mailbox.

    A reply goes to Reply-To, else to From; to a message that the account sent, also on behalf of
    another, it goes to the recipients of that one. A reply to all goes to the other recipients as
    well, but not to the account's addresses. Each address occurs once, and what is no valid address
    is left out. If only own addresses are left, the reply goes to these. RFC 5322 3.6.3.
    """
    authors = [one for one in (original.from_, original.sender) if one and one.address]
    is_own = any(one and account.owns(one.address) for one in (original.from_, original.sender))
    targets = original.to if is_own else _each_once(original.reply_to) or tuple(authors[:1])
    to = _each_once((*targets, *(() if is_own or not to_all else original.to)))
    known = {one.address.lower() for one in to}
    cc = _each_once(original.cc) if to_all else ()
    cc = tuple(one for one in cc if one.address.lower() not in known)
    if is_own or to_all:
        others_to, others_cc = (
            tuple(one for one in people if not account.owns(one.address)) for people in (to, cc)
        )
        if others_to or others_cc:
            return others_to, others_cc
        return _each_once(targets), ()
    return to, cc


def _each_once(people: Iterable[EmailAddress]) -> tuple[EmailAddress, ...]:
    """Return the people with a valid address, in its canonical form, each once."""
    found: dict[str, EmailAddress] = {}
    for one in people:
        with suppress(AddressError):
            address = parse_odd_mailbox(one.address, smtputf8=True)
            found.setdefault(address.lower(), EmailAddress(address, one.name))
    return tuple(found.values())


def check_has_recipients(properties: MessageProperties) -> None:
    """Raise ErrorInvalidRecipients if a message has no recipients."""
    if not (properties.to or properties.cc or properties.bcc):
        raise ApiError(
            400,
            "ErrorInvalidRecipients",
            "At least one recipient is not valid., A message can't be sent because it contains no "
            "recipients: toRecipients, ccRecipients and bccRecipients are empty.",
        )


def _recipient(value: object, path: str) -> EmailAddress:
    given = read_object(value, path)
    path = f"{path}.emailAddress"
    if given.get("emailAddress") is None:
        raise _invalid_recipient(f"{path} is missing")
    inner = read_object(given["emailAddress"], path)
    name = read_header_text(inner.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    path = f"{path}.address"
    text = read_header_text(inner.get("address"), path, longest=_ADDRESS_CHARACTERS).strip(" ")
    if not text:
        raise _invalid_recipient(f"{path} is missing or empty")
    try:
        return EmailAddress(address=parse_odd_mailbox(text, smtputf8=True), name=name)
    except AddressError as error:
        raise _invalid_recipient(f"{path}: {quoted(text)} is no mail address: {error}") from None


def _too_many_recipients(count: int) -> ApiError:
    message = (
        f"The message has {count} recipients; the maximum in to, cc and bcc is {RECIPIENTS_MAX}."
    )
    return ApiError(400, "ErrorInvalidRecipients", message)


def _invalid_recipient(reason: str) -> ApiError:
    message = f"At least one recipient is not valid., {reason}."
    return ApiError(400, "ErrorInvalidRecipients", message)
