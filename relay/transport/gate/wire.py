"""The frames between the two processes of the gate, as msgspec Structs in MessagePack.

The child makes calls, and the owner answers each call once, with the number of the call. Other
frames have no answer. `session` is the number that the owner gave to a connection. The owner knows
the client of the session, so a frame does not say who that is. Decoding raises ValueError for
octets that are none of these frames.
"""

import sys
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from relay.base.message.address import PATH_OCTETS_MAX
from relay.base.observe.logs import Form
from relay.base.pressure import PressureState
from relay.base.settings.tree import SmtpListener
from relay.transport.ingress import session_client
from relay.transport.ingress.data import DataReply
from relay.transport.ingress.session_limits import SessionLimits

_Address = Annotated[str, Meta(max_length=PATH_OCTETS_MAX)]  # the owner keeps some
_Bound = Annotated[str, Meta(max_length=40)]
_Refused = tuple[Annotated[int, Meta(ge=1)], Annotated[str, Meta(max_length=PATH_OCTETS_MAX)]]
_Secret = Annotated[str, Meta(max_length=SessionLimits().auth_line_bytes)]


class ChildStart(Struct, frozen=True):
    """How the child logs, as its argument in JSON; a field of a newer owner is ignored."""

    log: Form
    journal: str = ""  # JOURNAL_STREAM
    color: str = ""  # "": none
    node: str = ""  # in each line
    crash_at: str = ""  # the crash point of a test
    memory_bytes: int = sys.maxsize  # for the sessions of a listener


class _Frame(Struct, frozen=True, tag=True, array_like=True):
    """One frame."""


class _OfSession(_Frame, frozen=True):
    """A frame of a session."""

    session: int


class _Call(_OfSession, frozen=True):
    """A call of a session; a session makes one call at a time."""

    call: int  # the number that the answer has


# -- from the child


class LogIn(_Call, frozen=True):
    """SessionClient.log_in(). The answer is a LoginAnswer."""

    user: _Secret
    secret: _Secret
    is_token: bool


class CheckSender(_Call, frozen=True):
    """SessionClient.sender_rejection(). The answer is the reply."""

    reverse_path: _Address


class CheckRecipient(_Call, frozen=True):
    """SessionClient.check_recipient(). The answer is a RecipientAnswer."""

    address: _Address
    reverse_path: _Address
    size_bytes: int
    helo: _Address = ""


class OpenBody(_Call, frozen=True):
    """Asks for the file of a large body. The answer is a BodyFile, or the text of the error."""


class WrittenBody(Struct, frozen=True, array_like=True):
    """Size, checksum and form of the body that a session has written to its file."""

    size_bytes: int
    crc32: int
    eight_bit: bool
    long_lines: bool


class Accept(_Call, frozen=True):
    """SessionClient.accept(). The answer is a DataReply."""

    offered: session_client.OfferedMail
    content: bytes  # if there is a `body`, only the header
    body: WrittenBody | None = None


class DropBody(_OfSession, frozen=True):
    """The file of a body is not needed any more."""


class Refused(_OfSession, frozen=True):
    """SessionClient.refused()."""

    refused: session_client.RefusedCommand
    claims: session_client.SessionClaims


class Ended(_OfSession, frozen=True):
    """A connection has ended. No more frames of its session follow."""


class Ready(_Frame, frozen=True):
    """The child is alive and uses the last Setup or LoadState.

    `missing` names the parts of the sandbox that the kernel does not have, `full` has the places in
    Setup of the listeners without places for strangers, `refused` what Shares have refused since
    the last frame: by bound, how many, and the heaviest key.
    """

    missing: tuple[str, ...]
    full: tuple[int, ...] = ()
    refused: dict[_Bound, _Refused] = {}


FromChild = (
    LogIn | CheckSender | CheckRecipient | OpenBody | Accept | DropBody | Refused | Ended | Ready
)


# -- from the owner


class CallAnswer(_Frame, frozen=True):
    """The answer to a call."""

    call: int
    value: Raw
    has_failed: bool = False  # for a reason that the owner has logged


class LoginAnswer(Struct, frozen=True, array_like=True):
    """The result of LogIn: the account that logged in, or "" for a wrong secret.

    `delayed` says why the secret cannot be checked yet, `refused` why the login was refused.
    """

    login: str = ""
    delayed: str = ""
    retry_after_s: float = 0.0
    refused: str = ""


class ListenerSetup(Struct, frozen=True, array_like=True):
    """One listener."""

    settings: SmtpListener  # without the files of its certificates, and its networks
    certificates: list[bytes]  # chains with keys, as PEM; the first is for clients that name none
    requires_tls: bool
    offers_auth_in_clear: bool


class Setup(_Frame, frozen=True):
    """The settings of the child, at its start and after a reload.

    After a reload, accounts, routes or rules may have changed too, so the child forgets the kept
    RecipientAnswers.
    """

    hostname: str
    listeners: list[ListenerSetup]


class LoadState(_Frame, frozen=True):
    """How much mail is accepted now; sent before the first connection, then twice a second."""

    pressure: PressureState
    paused: str  # why an operator lets nothing be accepted, or ""


class Drain(_Frame, frozen=True):
    """End the sessions within the time, then exit."""

    grace_s: float


FromOwner = CallAnswer | Setup | LoadState | Drain


# -- packets, from the owner


class NewConnection(_Frame, frozen=True):
    """A new connection of a listener, and the trust of its client."""

    session: int
    listener: int  # its place in Setup
    ip: str
    is_trusted: bool


class BodyFile(_Frame, frozen=True):
    """The answer to OpenBody."""

    call: int


Packet = NewConnection | BodyFile

_encode = msgspec.msgpack.Encoder().encode
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)
_from_owner: msgspec.msgpack.Decoder[FromOwner] = msgspec.msgpack.Decoder(FromOwner)
_packet: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)
decode_from_child = _from_child.decode
decode_from_owner = _from_owner.decode
decode_packet = _packet.decode
decode_login = msgspec.msgpack.Decoder(LoginAnswer).decode
decode_reply = msgspec.msgpack.Decoder(str).decode
decode_recipient = msgspec.msgpack.Decoder(session_client.RecipientAnswer).decode
decode_data_reply = msgspec.msgpack.Decoder(DataReply).decode


def encode(value: object) -> bytes:
    """Return a frame, packet or answer as MessagePack.

    Octets of a client that are not UTF-8 are lone surrogates in text. They are escaped, as in a log
    line.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_escaped(msgspec.to_builtins(value, builtin_types=(bytes,))))


def _escaped(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list() | tuple():
            return [_escaped(inner) for inner in value]
        case dict():
            return {key: _escaped(inner) for key, inner in value.items()}
    return value
