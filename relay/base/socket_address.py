"""Where a socket listens or connects to, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on or connect to: host and port, or the path of a Unix socket.

    `plain` is an HTTP listener without TLS even if a certificate is configured. `systemd` is the
    name of sockets that the service manager opens; host and port, or path, are theirs, and empty in
    a process that has not got them.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    plain: bool = False
    systemd: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether only the service manager knows where it is."""
        return bool(self.systemd) and not (self.host or self.path)

    def __str__(self) -> str:
        if self.is_elsewhere:
            return f"systemd:{self.systemd}"
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
