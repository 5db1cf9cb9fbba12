"""An HTTP/1.1 connection to one host, which stays open between requests.

It goes to an address that the caller has chosen, or through a proxy to a name, by TLS with a
verified certificate or, without a context, in the clear. One request runs at a time. What is read
of an answer is bounded, and each request has one time limit. RFC 9112; RFC 9110 9.3.6 (CONNECT).
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from urllib.parse import unquote, urlsplit

import h11
from msgspec import Struct

from relay.delivery.smtp.connect import reason

_READ_BYTES = 16 * 1024
_HEADER_BYTES_MAX = 64 * 1024
_WRITE_BYTES = 64 * 1024
_INFORMATIONAL_MAX = 8  # responses before an answer (RFC 9110 15.2)
_REST_S = 0.5  # for the rest of an answer whose body is not needed


@dataclass(eq=False)
class HttpError(Exception):
    """There is no answer. `may_have_arrived`: the request, or a part of it, was written.
    `timed_out`: the time limit has passed. `untrusted`: the certificate is refused.
    """

    text: str
    _: KW_ONLY
    may_have_arrived: bool = False
    timed_out: bool = False
    untrusted: bool = False


class HttpResponse(Struct, frozen=True):
    """An answer. The names of `fields` are in lower case; the last field of a name counts."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class Proxy(Struct, frozen=True):
    """An HTTP proxy; `credentials` are "USER:PASSWORD", "" for none."""

    host: str
    port: int
    credentials: str = ""

    @classmethod
    def parse(cls, url: str) -> "Proxy | None":
        """Return the proxy of a URL that the settings have checked, None for ""."""
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            return None
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return cls(parts.hostname, parts.port, login if parts.username else "")


class ClientConnection:
    """An open connection. `authority` is the Host field of its requests."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str
    ) -> None:
        self.authority = authority
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES_MAX)

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent. False once the host has closed it."""
        is_idle = self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE
        return is_idle and not self._reader.at_eof() and not self._writer.is_closing()

    @property
    def tls(self) -> ssl.SSLObject | None:
        """Its TLS, None in the clear."""
        tls: ssl.SSLObject | None = self._writer.get_extra_info("ssl_object")
        return tls

    async def request(
        self,
        method: str,
        target: str,
        *,
        fields: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        timeout_s: float,
        answer_bytes_max: int,
    ) -> HttpResponse:
        """Send a request and return its answer; `target` is the path and query. With 0 as
        `answer_bytes_max` its body is not needed. Raises HttpError, after which the connection is
        closed.
        """
        if not self.is_open:
            self.close()
            raise HttpError(f"{self.authority}: the host closed the connection")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s  # real time: a peer
        length = (("Content-Length", str(len(body))),) if body or method == "POST" else ()
        header = (("Host", self.authority), ("User-Agent", "Relay"), *fields, *length)
        request = h11.Request(method=method, target=target, headers=list(header))
        was_written = False
        try:
            async with asyncio.timeout_at(until_s):  # real time: a peer
                octets = self._http.send(request) or b""
                was_written = True
                self._writer.write(octets)
                for start in range(0, len(body), _WRITE_BYTES):
                    data = h11.Data(data=body[start : start + _WRITE_BYTES])
                    self._writer.write(self._http.send(data) or b"")
                    await self._writer.drain()
                self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
                await self._writer.drain()
                answer = await self._answer(answer_bytes_max)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | h11.ProtocolError):
                raise
            slow = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else ""
            raise _http_error(self.authority, error, slow, may_have_arrived=was_written) from None
        if not answer_bytes_max:
            with suppress(TimeoutError, OSError, h11.ProtocolError):  # it may still write
                rest_until_s = min(until_s, loop.time() + _REST_S)  # real time: a peer
                async with asyncio.timeout_at(rest_until_s):  # real time: a peer
                    await self._answer(_READ_BYTES)
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            self.close()
        return answer

    async def _answer(self, body_max: int) -> HttpResponse:
        """With 0, return before the body. Raises OSError, h11.ProtocolError."""
        status, fields, body = 0, dict[str, str](), bytearray()
        received = informational = 0
        received_max = _HEADER_BYTES_MAX + _READ_BYTES + 2 * body_max  # twice: framing of chunks
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await asyncio.sleep(0)  # to read what is in the buffer does not yield
                octets = await self._reader.read(_READ_BYTES)
                received += len(octets)
                if not received:
                    raise ConnectionResetError("the host closed the connection without an answer")
                if received > received_max:
                    raise OSError(f"header and framing are longer than {_HEADER_BYTES_MAX} octets")
                self._http.receive_data(octets)
            elif isinstance(event, h11.InformationalResponse):
                informational += 1
                if informational > _INFORMATIONAL_MAX:
                    raise OSError(f"more than {_INFORMATIONAL_MAX} responses are informational")
            elif isinstance(event, h11.Response):
                status = event.status_code
                fields = {name.decode(): text.decode("latin-1") for name, text in event.headers}
                if not body_max:
                    return HttpResponse(status, fields, b"")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > body_max:
                    raise OSError(f"the answer is longer than {body_max} octets")
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return HttpResponse(status, fields, bytes(body))

    def close(self) -> None:
        """Close, without waiting."""
        self._writer.transport.abort()


async def open_http(
    address: str,
    port: int,
    *,
    authority: str,
    host: str,
    context: ssl.SSLContext | None,
    proxy: Proxy | None = None,
    timeout_s: float,
) -> ClientConnection:
    """Connect for requests to `host` at `port`, with TLS if there is a context: to an `address` of
    the host, or through a proxy. Raises HttpError.
    """
    place = (address, port) if proxy is None else (proxy.host, proxy.port)
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):  # real time: a peer
            if proxy is None:
                reader, writer = await asyncio.open_connection(
                    *place, ssl=context, server_hostname=host if context is not None else None
                )
                return ClientConnection(reader, writer, authority)
            reader, writer = await asyncio.open_connection(*place)
            await _through(proxy, reader, writer, target=f"{host}:{port}")
            if context is not None:
                await writer.start_tls(context, server_hostname=host)
            return ClientConnection(reader, writer, authority)
    except BaseException as error:
        if writer is not None:
            writer.transport.abort()
        if not isinstance(error, OSError | h11.ProtocolError):
            raise
        if proxy is not None:
            authority = f"{authority} by the proxy {proxy.host}:{proxy.port}"
        slow = f"no connection within {timeout_s:g} s" if isinstance(error, TimeoutError) else ""
        raise _http_error(authority, error, slow) from None


def _http_error(
    authority: str, error: Exception, slow: str, *, may_have_arrived: bool = False
) -> HttpError:
    """Return what an error means; `slow`: that the time was over."""
    text = slow if slow and not str(error) else reason(error)
    if isinstance(error, h11.ProtocolError):
        text = f"no HTTP answer: {text}"
    return HttpError(
        f"{authority}: {text}",
        may_have_arrived=may_have_arrived,
        timed_out=bool(slow),
        untrusted=isinstance(error, ssl.SSLCertVerificationError),
    )


async def _through(
    proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, target: str
) -> None:
    """Ask a proxy for a tunnel. Raises OSError, h11.ProtocolError."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES_MAX)
    fields = [("Host", target)]
    if proxy.credentials:
        basic = b64encode(proxy.credentials.encode()).decode()
        fields.append(("Proxy-Authorization", f"Basic {basic}"))
    writer.write(http.send(h11.Request(method="CONNECT", target=target, headers=fields)) or b"")
    writer.write(http.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(_READ_BYTES))
    if not isinstance(event, h11.Response) or event.status_code // 100 != 2:
        status = getattr(event, "status_code", "no answer")
        raise ConnectionError(f"the proxy refuses the tunnel ({status})")
