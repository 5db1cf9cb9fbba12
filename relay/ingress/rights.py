"""Check what an account that logged in may send as: its reverse-path, From and Sender.

On the path: MAIL asks for the reverse-path, acceptance for the header once the content is there.
Holds: HTTP has the same rule (Account.may_send_as); what cannot be read in From or Sender is
    refused, so that no other program reads another author there.
Fails: never; returns the reply that refuses, "" for none.
Standards: RFC 6409 4.2, 6.1 (553 5.7.1); RFC 5322 3.6.2.
"""

from relay.ingress.ports import Passwords
from relay.mime.headread import originators

_SHOWN_CHARACTERS_MAX = 120
_ADVICE = "use its own address, an alias, or an address that its send_as lists"


def refused_sender(accounts: Passwords, login: str, reverse_path: str) -> str:
    """Return why the account `login` may not use this reverse-path.

    The null reverse-path is free: mail clients send notifications (RFC 8098) with it.
    """
    account = accounts.by_address(login)
    if account is None or account.address != login:  # removed since the login
        return f"530 5.7.0 The account {_shown(login)} is not there any more; log in again"
    if not reverse_path or account.may_send_as(reverse_path):
        return ""
    return _refusal(f"<{_shown(reverse_path)}>", login)


def refused_header(accounts: Passwords, login: str, header: bytes) -> str:
    """Return why the account `login` may not send a message with this header section."""
    account = accounts.by_address(login)
    if account is None or account.address != login:
        return refused_sender(accounts, login, "")
    for field in originators(header):
        for person in field.people:
            if not account.may_send_as(person.address):
                return _refusal(f"<{_shown(person.address)}> in {field.name}", login)
        if field.unread or not field.people:
            found = _shown(field.unread) if field.unread else "no address"
            return (
                f"553 5.7.1 Found {found} in {field.name}, expected only addresses of the account "
                f"{_shown(login)}; {_ADVICE}, and put a name with special characters in quotes"
            )
    return ""


def _refusal(found: str, login: str) -> str:
    return (
        f"553 5.7.1 {found}: the account {_shown(login)} may not send from this address; {_ADVICE}"
    )


def _shown(text: str) -> str:
    """Return text of the client's as printable ASCII that is not long."""
    clipped = text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
    return clipped.encode("unicode_escape").decode("ascii")
