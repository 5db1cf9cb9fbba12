"""The DKIM-Signature field of one key (RFC 6376 3.5): what it covers, and how it is written.

A signature names each field of SIGNED once more than the message has it, so that nobody can add
one (RFC 6376 8.15). It has no l=, x= or z=.
"""

import base64
from collections.abc import Sequence
from functools import lru_cache

from relay.message.header import Header
from relay.signing.canonical import BodyForm, relaxed_field
from relay.signing.keys import SigningKey

SIGNED = (
    "From",
    "Reply-To",
    "Subject",
    "Date",
    "To",
    "Cc",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
)
NAME = "DKIM-Signature"
_LINE_MAX = 78  # RFC 5322 2.1.1
_CRLF = b"\r\n"
_TIME, _HASH = "%" * 10, "&" * 44  # as long as what takes their places


def signature_field(
    header: Header, key: SigningKey, *, body_hash: bytes, form: BodyForm, time_s: int
) -> bytes:
    """Return the complete field, folded, for a message with this header and body hash.

    `time_s` is in seconds since 1970. Raises what the key raises if it cannot sign.
    """
    names = signed_names(header)
    field = _template(
        names, (key.domain, key.selector), f"{key.private.algorithm}; c=relaxed/{form}"
    )
    field = field % (time_s, base64.b64encode(body_hash))
    signature = base64.b64encode(key.private.sign(covered(header, names, field)))
    return field + _wrapped(signature, taken=len(field) - field.rindex(b"\n") - 1) + _CRLF


def signed_names(header: Header) -> tuple[str, ...]:
    """Return the names for h=: each field that is signed once more than the header has it."""
    return tuple([name for name in SIGNED for _ in range(header.count(name) + 1)])


def covered(header: Header, names: Sequence[str], signature: bytes) -> bytes:
    """Return the octets that are signed (RFC 6376 3.7): the fields in the order of `names`, of
    fields with one name the last one first, and the signature field, whose b= is empty.
    """
    values: dict[str, list[bytes]] = {}
    covered = []
    for name in names:
        lowered = name.lower()
        if lowered not in values:
            values[lowered] = header.values(name)
        if values[lowered]:
            covered += [relaxed_field(lowered.encode(), values[lowered].pop()), _CRLF]
    own = signature.partition(b":")[2].replace(_CRLF, b"").strip()
    return b"".join([*covered, relaxed_field(NAME.lower().encode(), own)])


@lru_cache(maxsize=256)  # few messages differ in which fields they have
def _template(names: tuple[str, ...], key: tuple[str, str], algorithm: str) -> bytes:
    """Return the field without b=, with places for t= and for bh=; `key` is domain and selector."""
    domain, selector = key
    folded = _folded(
        (
            f"{NAME}: v=1;",
            *f"a={algorithm};".split(),
            f"d={domain};",
            f"s={selector};",
            f"t={_TIME};",
            *_listed(names),
            f"bh={_HASH};",
            "b=",
        )
    )
    return folded.replace(_TIME, "%d").replace(_HASH, "%b").encode()


def _listed(names: Sequence[str]) -> list[str]:
    """Return the tag h= in pieces, of which each may begin a line."""
    pieces = [f"{name}:" for name in names]
    return [f"h={pieces[0]}", *pieces[1:-1], f"{names[-1]};"]


def _folded(pieces: Sequence[str]) -> str:
    """Return the pieces on lines of at most 78 octets, as far as they are that short. Between
    tags there is a space; within h= the lines are filled without one.
    """
    lines = [pieces[0]]
    for piece in pieces[1:]:
        space = "" if lines[-1].endswith(":") else " "
        if len(lines[-1]) + len(space) + len(piece) > _LINE_MAX:
            lines.append(f" {piece}")
        else:
            lines[-1] += space + piece
    return "\r\n".join(lines)


def _wrapped(octets: bytes, *, taken: int) -> bytes:
    """Return base64 on lines of at most 78 octets; `taken` octets stand before it on the first."""
    first = _LINE_MAX - taken
    rest = range(first, len(octets), _LINE_MAX - 1)
    return b"\r\n ".join([octets[:first], *[octets[at : at + _LINE_MAX - 1] for at in rest]])
