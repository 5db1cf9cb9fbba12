"""A session with Microsoft Graph, on which transactions follow each other."""

from collections.abc import Callable

from relay.delivery.host_selection import HostSession
from relay.delivery.http_connection import Proxy
from relay.delivery.smtp.connect import GetToken, Target
from relay.delivery.smtp.connection import Timeouts


async def open_graph(
    target: Target,
    *,
    get_token: GetToken,
    proxy: Proxy | None,
    timeouts: Timeouts,
    real_s: Callable[[], float],
) -> HostSession:
    """Get a token and connect to `target`. Raises ConnectError."""
    raise NotImplementedError
