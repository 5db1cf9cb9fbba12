"""Who looks: an account with its role, or the operator behind the control socket.

On the path: app makes a Viewer from the token; the handlers ask it what may be seen.
Holds: without a role above user, only one's own messages.
Fails: ApiError 403 for what the role does not allow.
Standards: none; roles from docs/names.md.
"""

from dataclasses import dataclass

from relay.accounts import Account, Role
from relay.http.errors import ApiError


@dataclass(frozen=True, slots=True)
class Viewer:
    """`name` is what a changed queue entry's event says of who did it."""

    name: str
    role: Role

    @property
    def account(self) -> str | None:
        """Whose messages may be seen; None for all."""
        return self.name if self.role is Role.USER else None

    def check_may_read(self) -> None:
        """Raise ApiError 403 unless the whole queue may be seen."""
        if self.role is Role.USER:
            raise _denied("read or operate")

    def check_may_operate(self) -> None:
        """Raise ApiError 403 unless the queue may be changed."""
        if self.role is not Role.OPERATE:
            raise _denied("operate")


OPERATOR = Viewer(name="control socket", role=Role.OPERATE)


def viewer_of(account: Account) -> Viewer:
    """Return what an account is here."""
    return Viewer(name=account.address, role=account.role)


def _denied(role: str) -> ApiError:
    message = f"Access is denied: this needs an account of the role {role}."
    return ApiError(403, "ErrorAccessDenied", message)
