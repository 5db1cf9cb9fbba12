"""Tell systemd how the service is.

On the path: beside it.
Holds: without NOTIFY_SOCKET nothing happens.
Fails: never; a manager that does not listen is not our trouble.
Standards: sd_notify(3).
"""

import contextlib
import socket


class ServiceManager:
    """Sends states to the socket that NOTIFY_SOCKET names."""

    def __init__(self, notify_socket: str) -> None:
        """`notify_socket` is a path, or "@name" for an abstract socket; "" for no manager."""
        self._address = "\0" + notify_socket[1:] if notify_socket[:1] == "@" else notify_socket

    def tell(self, *states: str) -> None:
        """Send lines such as "READY=1", "STOPPING=1", "STATUS=..."."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(states).encode(), self._address)
