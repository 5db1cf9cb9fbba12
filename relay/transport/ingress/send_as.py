"""Authorize the sender addresses of an account ("send as"), and of a user of this machine.

An account that logged in may use its addresses and the addresses in its send_as. This is checked
for the reverse-path, for the fields From and Sender, and for Resent-From and Resent-Sender of the
last resending. HTTP has the same rule (check_rights() in relay/front_door/graph/send_mail.py). If
such a field cannot be parsed, the message is rejected: a program might read another author there.

RFC 6409 6.1, 6.3 (with 550; 553 5.7.1 is Postfix's reply); RFC 5322 3.6.2 (From, Sender), 3.6.6
(Resent-From); RFC 7505 4.2.
"""

from collections.abc import Callable

from relay.base.accounts.account import AccountDirectory
from relay.base.message.address import ascii_address, excerpt, shown_address
from relay.base.message.header import Header
from relay.formats.read_header import originators
from relay.transport.ingress.local_users import LocalUser

_SHOWN_CHARACTERS_MAX = 120
_ADVICE = "use its own address, an alias, or an address that its send_as lists"
_USER_ADVICE = "the users that [sendmail] users names may send from any address"


def sender_rejection(accounts: AccountDirectory, login: str, reverse_path: str) -> str:
    """Return the reply if the account `login` may not use this reverse-path, else "".

    Every account may use the null reverse-path: mail clients send notifications with it (RFC 8098).
    """
    account = accounts.of_login(login)
    if not reverse_path or (account is not None and account.may_send_as(reverse_path)):
        return ""
    return _rejection(f"<{_shown(reverse_path)}>", f"account {_shown(login)}", _ADVICE)


def local_rejection(user: LocalUser, reverse_path: str, header: Header | None = None) -> str:
    """Return the reply if a user of this machine may not use this reverse-path, or an address in a
    field of originators of `header`, else "".
    """
    who = f"user {_shown(user.name)} (<{_shown(user.address)}>)"
    if reverse_path and not user.may_send_as(reverse_path):
        return _rejection(f"<{_shown(reverse_path)}>", who, _USER_ADVICE)
    if header is None or user.any_sender:
        return ""
    return _field_rejection(header, user.may_send_as, who=who, advice=_USER_ADVICE)


def null_mx_reply(domain: str) -> str:
    """Return the reply to a sender whose domain accepts no mail."""
    # RFC 7505 4.2
    return f"550 5.7.27 The sender domain {_shown(domain)} accepts no mail (null MX)"


def header_rejection(accounts: AccountDirectory, login: str, header: Header) -> str:
    """Return the reply if the account `login` may not use a field of originators, else ""."""
    account = accounts.of_login(login)
    if account is None:  # removed after the final dot
        # RFC 4954 6
        return f"530 5.7.0 The account {_shown(login)} does not exist any more; log in again"
    who = f"account {_shown(login)}"
    return _field_rejection(header, account.may_send_as, who=who, advice=_ADVICE)


def _field_rejection(
    header: Header, may_send_as: Callable[[str], bool], *, who: str, advice: str
) -> str:
    for header_field in originators(header):
        for person in header_field.addresses:
            if not may_send_as(person.address) or not _has_one_reading(person.address):
                return _rejection(f"<{_shown(person.address)}> in {header_field.name}", who, advice)
        if header_field.unread or not header_field.addresses:
            text = _shown(header_field.unread) if header_field.unread else "no address"
            return (
                # RFC 6409 6.3; RFC 3463 3.8
                f"553 5.7.1 Found {text} in {header_field.name}, expected only addresses of the "
                f"{who}; {advice}, and put a name with special characters in quotes"
            )
    return ""


def _has_one_reading(address: str) -> bool:
    """Whether all readers read the same domain: it is in A-labels, or in their decoded form."""
    return address.isascii() or shown_address(ascii_address(address)) == address


def _rejection(address: str, who: str, advice: str) -> str:
    # RFC 6409 6.1, 6.3; RFC 3463 3.8
    return f"553 5.7.1 {address}: the {who} may not send from this address; {advice}"


def _shown(text: str) -> str:
    """Return text from the client as printable ASCII of bounded length."""
    return excerpt(text, _SHOWN_CHARACTERS_MAX)[1:-1]
