"""TLS between a connection and its protocol, within the limits from the first octet on.

The TLS of asyncio and uvloop reports a connection only after its handshake, so that clients could
open any number of them, and it has a write buffer of its own. Here what is written goes encrypted
into the buffer of the connection, which the limits count. A closure alert is sent and not waited
for (RFC 8446 6.1).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

from relay.http.connection_limits import ConnectionTable, HttpConnection
from relay.http.protocol import BoundedProtocol, host_of_peer

HANDSHAKE_TIMEOUT_S = 10.0
_READ_BYTES = 256 * 1024


class TlsConnection(asyncio.Protocol, asyncio.Transport):
    """The protocol of a connection, which makes the handshake and decrypts, and the transport of
    the BoundedProtocol within.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        connection_table: ConnectionTable,
        *,
        new_protocol: Callable[[], BoundedProtocol],
        handshakes: set["TlsConnection"],
    ) -> None:
        """`new_protocol` is called after the handshake; `handshakes` contains this until then."""
        super().__init__()
        self._context = context
        self._table = connection_table
        self._new_protocol = new_protocol
        self._handshakes = handshakes
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._connection: HttpConnection | None = None
        self._protocol: asyncio.Protocol | None = None  # None: the handshake is not over
        self._timer: asyncio.TimerHandle | None = None
        self._is_reading = True
        self._is_writing_paused = False
        self._is_closing = False
        self._raw: asyncio.Transport

    # -- the connection
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the connection and start the time-out of its handshake; at the limit close it."""
        self._raw = transport
        connection = self._table.add(host_of_peer(transport), self.abort)
        if connection is None:
            transport.abort()
        else:
            self._begin(connection)

    def take_over(self, transport: asyncio.Transport, connection: HttpConnection) -> None:
        """Continue a connection that was added before: what follows is a handshake."""
        self._raw = transport
        connection.close = self.abort
        transport.set_protocol(self)
        self._begin(connection)

    def _begin(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._handshakes.add(self)
        self._timer = asyncio.get_running_loop().call_later(  # real time: a client
            HANDSHAKE_TIMEOUT_S, self.abort
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection, or tell its protocol."""
        self._is_closing = True
        if self._protocol is not None:
            self._protocol.connection_lost(exc)
        else:
            self._end_handshake()
            if self._connection is not None:
                self._table.remove(self._connection)

    def data_received(self, data: bytes) -> None:
        """Continue the handshake, or decrypt."""
        self._incoming.write(data)
        if self._protocol is None:
            self._shake_hands()
        if self._protocol is not None:
            self._deliver()

    def eof_received(self) -> None:
        """Tell the protocol; the connection is closed then."""
        if self._protocol is not None:
            self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._is_writing_paused = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._is_writing_paused = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError:  # not TLS, or no version or cipher in common
            self._flush()
            self._is_closing = True
            self._raw.close()
            return
        self._flush()
        self._end_handshake()
        assert self._connection is not None
        self._protocol = made = self._new_protocol()
        made.admit(self._connection)
        made.connection_made(self)
        if self._is_writing_paused:
            self._protocol.pause_writing()

    def _end_handshake(self) -> None:
        self._handshakes.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _deliver(self) -> None:
        """Pass what has arrived to the protocol, while it reads."""
        assert self._protocol is not None
        while self._is_reading and not self._is_closing:
            try:
                data = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                if not self._raw.is_reading():
                    self._raw.resume_reading()  # not before: more would come than is delivered
                break
            except ssl.SSLError:
                self.abort()
                return
            if not data:  # the client's closure alert
                self._protocol.eof_received()
                self.close()
                return
            self._protocol.data_received(data)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._raw.is_closing():
            self._raw.write(self._outgoing.read())

    # -- the transport
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the connection."""
        own = {"sslcontext": self._context, "ssl_object": self._tls}
        return own[name] if name in own else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass what is received from now on to another protocol."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if data and not self.is_closing():
            self._tls.write(data)
            self._flush()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the limits of encrypted data that waits to be sent."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the number of encrypted octets that wait to be sent."""
        return self._raw.get_write_buffer_size()

    def is_closing(self) -> bool:
        """Return whether nothing more is read or written."""
        return self._is_closing or self._raw.is_closing()

    def close(self) -> None:
        """Send a closure alert, and close when everything is sent."""
        if not self.is_closing():
            with contextlib.suppress(ssl.SSLError):  # raised because the client's alert is missing
                self._tls.unwrap()
            self._flush()
            self._is_closing = True
            self._raw.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        self._raw.abort()

    def is_reading(self) -> bool:
        """Return whether received data is passed to the protocol."""
        return self._is_reading and not self.is_closing()

    def pause_reading(self) -> None:
        """Pass nothing more to the protocol."""
        if self.is_reading():
            self._is_reading = False
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Continue with what has arrived meanwhile."""
        if not self._is_reading and not self.is_closing():
            self._is_reading = True
            asyncio.get_running_loop().call_soon(self._deliver)
