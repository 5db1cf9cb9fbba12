"""What the owner and a worker process send each other: a length, and MessagePack."""

from collections.abc import Mapping, Sequence

from msgspec import Struct, msgpack

from relay.base.message.authentication_results import AuthResult
from relay.transport.routing.dns_cache import DnsQuestion

LENGTH_BYTES = 4
READY = b"\n"
# The values of records, empty if there are none, None if there is no answer.
Known = Mapping[DnsQuestion, Sequence[bytes] | None]


class Request(Struct, frozen=True, array_like=True):
    """A message to check with the DNS answers so far."""

    ip: str
    helo: str
    sender: str  # "" is the null reverse-path
    hostname: str
    known: Sequence[tuple[DnsQuestion, Sequence[bytes] | None]]
    header: bytes
    body: bytes | None  # without the blank line; None if it follows when all answers are known
    is_large: bool = False  # its signatures are not checked


class Reply(Struct, frozen=True, array_like=True):
    """The questions that lack an answer; or the results, if the request has the body."""

    lacking: Sequence[DnsQuestion]
    results: Sequence[AuthResult] = ()  # SPF of the sender, SPF of HELO, DKIM


def framed(value: Request | Reply) -> bytes:
    """Return the octets of a value with their length."""
    octets = msgpack.encode(value)
    return len(octets).to_bytes(LENGTH_BYTES) + octets


read_request = msgpack.Decoder(Request).decode
read_reply = msgpack.Decoder(Reply).decode
