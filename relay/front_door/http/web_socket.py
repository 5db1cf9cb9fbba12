"""A WebSocket, on which the relay sends and a client has nothing to say (RFC 6455).

The handshake is a GET: its handler makes the WebSocket when all checks of a GET have passed, and
opens it. Until then the answer is that of any other request. There are no extensions, so nothing is
compressed. What a client sends is dropped, in pieces with pauses: each frame takes time.
"""

import asyncio
import re

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

from relay.front_door.http.errors import ApiError, bad_request, quoted
from relay.front_door.http.http_request import TAKE_OVER, HttpRequest

# limit: a message of a WebSocket's client; then the close code 1009
MESSAGE_BYTES_MAX = 64 * 1024
# limit: what a WebSocket's client has not read; then its connection is closed
UNREAD_BYTES_MAX = 1 << 20
CLOSE_S = 1.0  # that a client has for its part of the closing handshake
_PIECE_BYTES, _PAUSE_S = 4096, 0.02  # at most 700 frames
_OFFER = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))
_KEY_FIELDS = (b"sec-websocket-key", b"sec-websocket-version")
_KEY = re.compile("[A-Za-z0-9+/]{22}==")  # RFC 6455 4.2.1
_EXPECTED = {"sec-websocket-version": "13", "upgrade": "websocket", "connection": "upgrade"}


class WebSocket:
    """One connection, after open()."""

    def __init__(self, request: HttpRequest) -> None:
        """Raise ApiError 426 for a request that offers no WebSocket of version 13, 400 for a key
        that is none.
        """
        self._request = request
        self._wire = WSConnection(ConnectionType.SERVER)
        self._message_bytes = 0  # of the message that the client is sending
        offer = _OFFER if TAKE_OVER in request.scope else ()
        fields = [field for field in request.headers.raw if field[0] in _KEY_FIELDS]
        key = request.headers.get("sec-websocket-key", "")
        try:
            self._wire.initiate_upgrade_connection([(b"host", b"relay"), *offer, *fields], "/")
        except RemoteProtocolError as error:
            text = f"Expected the handshake of a WebSocket: {error}."
            raise ApiError(426, "", text, headers=_EXPECTED) from None
        if not _KEY.fullmatch(key):
            raise bad_request(
                f"Sec-WebSocket-Key: found {quoted(key)}, expected 16 octets in base64."
            )

    def open(self) -> None:
        """Answer 101. From now on the connection belongs to this WebSocket."""
        self._transport: asyncio.Transport = self._request.scope[TAKE_OVER](self)
        self.send(AcceptConnection())

    def send(self, event: Event) -> None:
        """Send an event of wsproto, unless the end has begun; cut off a client that does not read,
        or has lost its rights.
        """
        is_ending = self._wire.state in (ConnectionState.LOCAL_CLOSING, ConnectionState.CLOSED)
        if not is_ending and not self._transport.is_closing():
            try:
                self._request.check_rights()
            except ApiError:
                self.abort()
                return
            self._transport.write(self._wire.send(event))
            if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
                self.abort()

    def close(self, reason: CloseReason = CloseReason.GOING_AWAY) -> None:
        """Begin the closing handshake; a second later the connection is closed in any case."""
        self.send(CloseConnection(reason))
        asyncio.get_running_loop().call_later(CLOSE_S, self.abort)  # real time: a client

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer what the client sends, and read on when that is done."""
        if self._transport.is_closing():
            return
        self._wire.receive_data(data[:_PIECE_BYTES])
        for event in self._wire.events():
            self._respond(event)
        if self._transport.is_closing():
            return
        if rest := data[_PIECE_BYTES:]:
            self._transport.pause_reading()
            loop = asyncio.get_running_loop()
            loop.call_later(_PAUSE_S, self.data_received, rest)  # real time: a client
        else:
            self._transport.resume_reading()

    def _respond(self, event: Event) -> None:
        match event:
            case Ping():
                self.send(event.response())
            case Message():
                data = event.data.encode() if isinstance(event.data, str) else event.data
                self._message_bytes += len(data)
                if is_large := self._message_bytes > MESSAGE_BYTES_MAX:
                    self.close(CloseReason.MESSAGE_TOO_BIG)
                if event.message_finished or is_large:
                    self._message_bytes = 0
            case CloseConnection():  # of the client, or for what is no frame
                self.send(event.response())
                self._transport.close()
