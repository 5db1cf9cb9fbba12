"""A transaction as values, and what turns its replies into an outcome per recipient.

On the path: delivery and pickup make a Transaction; connection feeds its replies to Progress.
Holds: sans-I/O; an outcome is never overwritten; only an accepted RCPT can end as Relayed.
Fails: never.
Standards: RFC 5321 3.3, 4.5.3.1.10; RFC 3461 (parameters); RFC 1047.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from relay.message.classify import (
    Peer,
    Reply,
    Stage,
    Trouble,
    classify,
    classify_trouble,
    closes,
    is_overflow,
)
from relay.message.content import Content, in_sight, is_eight_bit, size_of
from relay.message.envelope import Notify
from relay.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Outcome,
    Relayed,
)
from relay.message.xtext import encode_orcpt, encode_xtext


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT TO; `orcpt` is decoded with its type ("rfc822;Bob@example.net") or ""."""

    address: str
    notify: frozenset[Notify] = frozenset()
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One MAIL…dot. `content` has CRLF line ends and is not dot-stuffed; `envid` is decoded.

    `smtputf8` and `eight_bit` are what the client declared; the content shows what is needed.
    With `whole` the message goes to all its recipients or, unless every RCPT is accepted, to none.
    """

    reverse_path: str
    recipients: tuple[Recipient, ...]
    content: Content = field(repr=False)
    envid: str = ""
    ret: str = ""
    smtputf8: bool = False
    eight_bit: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """What came of it; keys and `again` are indexes into Transaction.recipients.

    `again`: the transaction was full; a new one at once, which is not an attempt. Every other
    recipient has an outcome, unless `stale`: a reused connection was dead already and nothing
    was tried; repeat on a fresh one, uncounted.
    """

    outcomes: Mapping[int, Outcome]
    again: tuple[int, ...] = ()
    reusable: bool = False
    stale: bool = False


class Progress:
    """Where a transaction stands. Give it each reply in order; it knows what is known of whom.

    `never_begun`: no reply to MAIL, or a 421. `closing`: the connection is of no more use.
    """

    def __init__(self, count: int, peer: Peer, *, whole: bool = False) -> None:
        """`count` is the number of recipients; `whole` as in Transaction."""
        self.outcomes: dict[int, Outcome] = {}
        self.accepted: list[int] = []
        self.stage = Stage.MAIL
        self.closing = False
        self.never_begun = True
        self._everybody = range(count)
        self._again: list[int] = []
        self._whole = whole
        self._peer = peer

    def refuse(self, status: str, text: str) -> None:
        """The message cannot be offered to this peer: nothing was written."""
        evidence = Evidence(status, f"{status} {text}", host=self._peer.host, tls=self._peer.tls)
        self._set(self._everybody, Failed(evidence))

    def mail(self, reply: Reply) -> bool:
        """Take the reply to MAIL; return whether recipients may follow."""
        self.stage = Stage.RCPT
        self.never_begun = closes(reply)
        return self._go_on(Stage.MAIL, reply)

    def rcpt(self, index: int, reply: Reply) -> None:
        """Take the reply to the RCPT of recipient `index`."""
        if index in self.outcomes:  # MAIL was refused, so this reply says nothing new
            return
        outcome = classify(Stage.RCPT, reply, self._peer)
        if outcome is None:
            self.accepted.append(index)
        elif self.accepted and is_overflow(reply) and not self._whole:
            self._again.append(index)
        else:
            self.outcomes[index] = outcome
            self._look_for_end(reply, outcome)

    def data(self, reply: Reply) -> bool:
        """Take the reply to DATA; return whether content, or at least a lone dot, must follow."""
        self.stage = Stage.DATA
        refused = list(self.outcomes.values())
        if self._whole and self.accepted and refused:
            self.closing = True  # without the dot, the peer forgets the transaction
            later = [outcome for outcome in refused if isinstance(outcome, Deferred)]
            self._set(self.accepted, (later or refused)[0])
            return False
        if self.accepted:
            return self._go_on(Stage.DATA, reply)
        self.closing = closes(reply) or reply.code // 100 == 2
        return reply.code // 100 == 3

    def dot_written(self) -> None:
        """From here on a lost connection leaves doubt."""
        self.stage = Stage.DOT

    def dot(self, reply: Reply) -> None:
        """Take the reply to the final dot."""
        outcome = classify(Stage.DOT, reply, self._peer)
        assert outcome is not None
        self._set(self.accepted, outcome)
        self._look_for_end(reply, outcome)

    def broken(self, trouble: Trouble, words: str, *, unasked: Reply | None = None) -> None:
        """The connection is gone or not to be trusted; `unasked` is a reply that came too early.

        A refusal sent while the content was still under way is the answer to the message.
        """
        self.closing = True
        outcome: Outcome | None = None
        if unasked is not None and self.stage is Stage.DATA and unasked.code // 100 in (4, 5):
            outcome = classify(Stage.DATA, unasked, self._peer)
        if outcome is None:
            outcome = classify_trouble(self.stage, trouble, words, peer=self._peer)
        self._set(self.accepted if self.stage is Stage.DOT else self._everybody, outcome)

    def unreadable(self, words: str) -> None:
        """The content cannot be read to its end: the peer must never see a final dot behind it."""
        self.closing = True
        evidence = Evidence("4.3.0", f"451 4.3.0 the message cannot be read: {words}")
        self._set(self._everybody, Deferred(evidence, DeferralClass.CONTENT))

    def result(self) -> TransactionResult:
        """What the caller gets."""
        again = tuple(index for index in self._again if index not in self.outcomes)
        return TransactionResult(self.outcomes, again, reusable=not self.closing)

    def _go_on(self, stage: Stage, reply: Reply) -> bool:
        outcome = classify(stage, reply, self._peer)
        if outcome is None:
            return True
        self._look_for_end(reply, outcome)
        held_back = frozenset(self._again)
        self._set([index for index in self._everybody if index not in held_back], outcome)
        return False

    def _look_for_end(self, reply: Reply, outcome: Outcome) -> None:
        """Notice a 421, or a code that answers nothing: all who have no outcome share this one.

        Behind the final dot those held back are not concerned: they were never part of it.
        """
        if closes(reply):
            self.closing = True
            self._set(self._everybody, outcome)
        elif reply.code // 100 in (2, 3) and not isinstance(outcome, Relayed):
            self.closing = True
            if self.stage is not Stage.DOT:
                self._set(self._everybody, outcome)

    def _set(self, indexes: Iterable[int], outcome: Outcome) -> None:
        for index in indexes:
            self.outcomes.setdefault(index, outcome)


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
