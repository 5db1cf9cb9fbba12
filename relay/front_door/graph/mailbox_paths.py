"""Paths of the Graph API: OData's keys in parentheses, and which mailbox a path names."""

import re

from relay.base.accounts.account import Account, AccountDirectory, UnknownUserError
from relay.front_door.graph import errors
from relay.front_door.http.errors import quoted

_KEY = r"\((?:userPrincipalName=)?'"
_WITH_KEY = re.compile(rf"(.(?>(?!{_KEY}).)*+){_KEY}(.*)'\)", re.IGNORECASE | re.DOTALL)


def with_keys(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path with OData's parentheses as segments: messages('1') becomes messages/1."""
    if not any(segment.endswith("')") for segment in segments):
        return segments
    expanded: list[str] = []
    for segment in segments:
        if match := _WITH_KEY.fullmatch(segment):
            expanded += (match[1], match[2].replace("''", "'"))
        else:
            expanded.append(segment)
    return tuple(expanded)


async def find_mailbox(
    segments: tuple[str, ...], caller: Account, accounts: AccountDirectory
) -> tuple[Account, tuple[str, ...]]:
    """Return the account of the mailbox in the path, and the rest after /me or /users/{address}.

    Raises ApiError 400 for /me if no user has signed in, as in Graph; 403 if the caller may not
    open the mailbox; 404 for a mailbox that does not exist, if the caller could open it.
    """
    if segments[0].lower() == "me":
        if caller.is_application:
            raise errors.NO_USER("No user has signed in: the token is an application's.")
        return caller, segments[1:]
    try:
        owner = await accounts.in_path(segments[1], caller)
    except UnknownUserError as unknown:
        error = errors.USER_INVALID if len(segments) > 2 else errors.USER_NOT_FOUND
        raise error(str(unknown), quoted(segments[1])) from None
    if owner is None:  # the same answer for both reasons: it reveals no addresses
        raise errors.ACCESS_DENIED("This token opens no mailbox of this address.")
    return owner, segments[2:]
