"""Holds the access tokens of the [[oauth]] clients."""

from relay.base.message.nexthop import HopKind
from relay.delivery.smtp.connect import TokenError
from relay.transport.routing.route_table import Credentials


class TokenHolder:
    """Gets access tokens, and keeps them until shortly before their end."""

    async def token(self, login: Credentials, use: HopKind, refused: str = "") -> str:
        """Return a token of a login for SMTP or GRAPH; `refused` is one that a host has refused, ""
        for none. Raises TokenError.
        """
        raise TokenError("not built yet")
