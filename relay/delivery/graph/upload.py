"""Put the octets of a file to the URL of an upload session.

The URL is a secret, and is at a host that Graph names. Requests to it have no token. It is used by
verified HTTPS, at the next hop's own host, at Microsoft's and at those of the route's
`upload_hosts`; in the clear only at a next hop on this machine. No redirect is followed. Microsoft
Graph: Attach large files to Outlook messages.
"""

import re
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import unquote

from msgspec import Struct

from relay.base.message.outcome import Peer
from relay.base.message.web_url import UrlError, WebUrl, read_url
from relay.delivery.http_connection import ClientConnection, HttpResponse
from relay.delivery.smtp.connect import ConnectError, Target
from relay.delivery.smtp.connection import Timeouts

_URL_CHARACTERS_MAX = 16 * 1024  # a token is in it
_ANSWER_BYTES_MAX = 64 * 1024
_OF_MICROSOFT = ("office.com", "office365.com", "outlook.com", "microsoft.com")
_PIECE = re.compile(r"[A-Za-z0-9_.~%+-]{20,}")  # of a URL: by itself it may be the secret


_S = TypeVar("_S", bound=Struct)


class GraphRequests(Protocol):
    """What a GraphConnection (relay.delivery.graph.connection) does for files."""

    target: Target
    timeouts: Timeouts
    peer: Peer

    async def request(
        self, method: str, mailbox: str, path: str, *, body: bytes = b"", kind: str = ""
    ) -> HttpResponse:
        """Make one request in a mailbox. Raises HttpError, ConnectError."""

    async def open(self, host: str, port: int, *, is_tls: bool) -> ClientConnection:
        """Connect to this host. Raises ConnectError."""

    def read(self, answer: HttpResponse, kind: type[_S]) -> _S:
        """Return the JSON of an answer. Raises ConnectError, HttpError."""

    def trouble(self, answer: HttpResponse) -> ConnectError:
        """Return the error for an answer."""

    def no_tls(self, text: str) -> ConnectError:
        """Return the error where a host may not have what would be sent."""

    def hide(self, *secrets: str) -> None:
        """Let no evidence repeat these."""

    def close(self) -> None:
        """Close the connection: the next request opens another one."""


def upload_url(text: str, target: Target) -> WebUrl:
    """Return an upload URL to which octets may go. Raises UrlError, which names its host."""
    assert target.graph is not None
    url = read_url(text, schemes=("https", "http"), most=_URL_CHARACTERS_MAX)
    is_own = url.host == target.host
    hosts = (*_OF_MICROSOFT, *target.graph.upload_hosts)
    if not is_own and not any(f".{url.host}".endswith(f".{host}") for host in hosts):
        raise UrlError(f"files would go to {url.host}, which is not in upload_hosts")
    if url.scheme != "https" and not (is_own and target.stays_here):
        raise UrlError(f"files would go to {url.host} without TLS")
    return url


def secrets_in(url: WebUrl) -> list[str]:
    """Return what no text may repeat of an upload URL: it, and its parts."""
    parts = (url.text, url.target, *_PIECE.findall(url.target))
    return [form for part in parts for form in (part, unquote(part))]


@dataclass(eq=False)
class UploadRequests:
    """Requests to an upload URL, one after the other."""

    session: GraphRequests
    url: WebUrl
    _http: ClientConnection | None = None

    async def request(self, method: str, place: str = "", body: bytes = b"") -> HttpResponse:
        """GET what has arrived, or PUT octets at a `place` (RFC 9110 14.4). Raises ConnectError,
        HttpError.
        """
        url, session = self.url, self.session
        if self._http is None or not self._http.is_open:
            self.close()
            self._http = await session.open(url.host, url.port, is_tls=url.scheme == "https")
        answer = await self._http.request(
            method,
            url.target,
            fields=[("Content-Range", place)] if body else [],
            body=body,
            timeout_s=session.timeouts.dot_s,
            answer_bytes_max=_ANSWER_BYTES_MAX,
        )
        if answer.status // 100 == 3:
            raise session.no_tls(f"{url.host} redirects an upload: HTTP {answer.status}")
        return answer

    def close(self) -> None:
        """Close the connection at once."""
        if self._http is not None:
            self._http.close()
