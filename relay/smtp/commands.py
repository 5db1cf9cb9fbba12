"""What is written for a transaction: commands as the peer offers them, and dot-stuffed content.

On the path: connection writes it; nothing here reads or waits.
Holds: pure; a parameter is used only when the peer offers it; nobody can smuggle a line in.
Fails: never; what cannot be offered is a Refusal.
Standards: RFC 5321 4.5.2; RFC 1870; RFC 6152; RFC 6531 3.4; RFC 3461 4.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from relay.message.content import in_sight, is_eight_bit, size_of
from relay.message.xtext import encode_orcpt, encode_xtext
from relay.smtp.transaction import Recipient, Transaction

BLOCK_BYTES = 128 * 1024
FINAL_DOT = b".\r\n"
DATA = b"DATA\r\n"
RSET = b"RSET\r\n"
QUIT = b"QUIT\r\n"


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a peer's EHLO offered; `size_max` is 0 when it named no limit."""

    pipelining: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    size: bool = False
    size_max: int = 0

    @classmethod
    def offered(cls, keywords: Mapping[str, str]) -> Self:
        """Read EHLO's keywords (lower case) and their parameters."""
        size = keywords.get("size", "").strip()
        return cls(
            pipelining="pipelining" in keywords,
            eight_bit="8bitmime" in keywords,
            smtputf8="smtputf8" in keywords,
            dsn="dsn" in keywords,
            size="size" in keywords,
            size_max=int(size) if size.isascii() and size.isdigit() and len(size) <= 20 else 0,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message cannot be offered to this peer at all: RFC 3463 status and our own words."""

    status: str
    text: str


def refusal(transaction: Transaction, offered: Extensions) -> Refusal | None:
    """Return why the message cannot be offered, None if it can."""
    if not all(map(str.isprintable, _addresses(transaction))):
        return Refusal("5.1.3", "an address has a control character")
    if not offered.smtputf8 and needs_smtputf8(transaction):
        return Refusal("5.6.7", "the message needs SMTPUTF8, which the host does not offer")
    if not offered.eight_bit and is_eight_bit(transaction.content):
        return Refusal("5.6.3", "the message has 8-bit content, which the host does not accept")
    size = size_of(transaction.content)
    if offered.size_max and size > offered.size_max:
        text = f"the message has {size} bytes, the host accepts at most {offered.size_max}"
        return Refusal("5.3.4", text)
    return None


def needs_smtputf8(transaction: Transaction) -> bool:
    """Whether an address is not ASCII, or the header is not and its client declared SMTPUTF8."""
    if not all(map(str.isascii, _addresses(transaction))):
        return True
    content = in_sight(transaction.content)
    if not transaction.smtputf8 or content.isascii():
        return False
    return not content.partition(b"\r\n\r\n")[0].isascii()


def mail_command(transaction: Transaction, offered: Extensions) -> bytes:
    """Return MAIL FROM with what the peer can take of SIZE, BODY, SMTPUTF8, RET and ENVID."""
    words = [f"MAIL FROM:<{transaction.reverse_path}>"]
    if offered.size:
        words.append(f"SIZE={size_of(transaction.content)}")
    if offered.eight_bit and (transaction.eight_bit or is_eight_bit(transaction.content)):
        words.append("BODY=8BITMIME")
    if offered.smtputf8 and needs_smtputf8(transaction):
        words.append("SMTPUTF8")
    if offered.dsn and transaction.ret:
        words.append(f"RET={transaction.ret}")
    if offered.dsn and transaction.envid:
        words += _parameter("ENVID", encode_xtext, transaction.envid)
    return _line(words)


def rcpt_command(recipient: Recipient, offered: Extensions) -> bytes:
    """Return RCPT TO with NOTIFY and ORCPT where the peer offers DSN."""
    words = [f"RCPT TO:<{recipient.address}>"]
    if offered.dsn and recipient.notify:
        words.append("NOTIFY=" + ",".join(sorted(recipient.notify)))
    if offered.dsn and recipient.orcpt:
        words += _parameter("ORCPT", encode_orcpt, recipient.orcpt)
    return _line(words)


def stuffed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a content's blocks dot-stuffed, wherever they are cut, and the CRLF it may lack.

    The final dot is not part of it.
    """
    before = b"\r\n"  # the last two octets of what came
    for block in blocks:
        if not block:
            continue
        after = block.replace(b"\r\n.", b"\r\n..")
        if block.startswith(b"."):
            if before == b"\r\n":
                after = b"." + after
        elif block.startswith(b"\n.") and before.endswith(b"\r"):
            after = b"\n." + after[1:]
        before = block[-2:] if len(block) > 1 else before[-1:] + block
        yield after
    if before != b"\r\n":
        yield b"\r\n"


def _addresses(transaction: Transaction) -> Iterator[str]:
    yield transaction.reverse_path
    for recipient in transaction.recipients:
        yield recipient.address


def _parameter(name: str, encode: Callable[[str], str], value: str) -> list[str]:
    """Return NAME=value as a word, none for a value that cannot be written: mail goes without."""
    try:
        return [f"{name}={encode(value)}"]
    except ValueError:
        return []


def _line(words: list[str]) -> bytes:
    return " ".join(words).encode() + b"\r\n"
