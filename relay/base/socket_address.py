"""Where a socket listens or connects to, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on or connect to: host and port, or the path of a Unix socket.

    `plain` is an HTTP listener without TLS even if a certificate is configured.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    plain: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
