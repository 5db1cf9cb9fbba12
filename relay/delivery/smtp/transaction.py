"""An SMTP transaction: its commands, and the outcome that each reply gives each recipient.

Without I/O. The table in relay/base/message/outcome.py says which reply at which stage is which
outcome. After the final dot, SMTP has one reply, LMTP one for each accepted recipient in their
order. A parameter is sent only if the peer offers its extension; an address that needs an extension
which the peer lacks is Unsupported. An outcome is never overwritten. Only a recipient whose RCPT
was accepted can be Relayed or Delivered.

See RFC 5321 3.3, 4.5.2 and 4.5.3.1.10, RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 6531 3.4
(SMTPUTF8), RFC 3461 4 (DSN), RFC 9422 (LIMITS), RFC 1047 (lost replies), RFC 2033 4.2 (LMTP), RFC
8689 (REQUIRETLS).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from msgspec import Struct

from relay.base.message.content import Content, is_eight_bit, memory_part, size_of
from relay.base.message.envelope import Envelope, ForwardPath, domain_of, encode_orcpt, encode_xtext
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    Peer,
    Reply,
    SessionFailure,
    SmtpStage,
    Success,
    classify,
    classify_session_failure,
    closes_connection,
    is_recipient_limit,
)

BLOCK_BYTES = 128 * 1024
FINAL_DOT = b".\r\n"
DATA = b"DATA\r\n"
RSET = b"RSET\r\n"
QUIT = b"QUIT\r\n"


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message to send. `content` has CRLF line ends and is not dot-stuffed; octets of 8 bits
    only where the peer takes them.

    `smtputf8` and `eight_bit` of the envelope are what the client declared; the content decides
    what is needed. With `whole` the message goes to all its recipients or, unless every RCPT is
    accepted, to none. `encoded`: the content is encoded again for this peer, and why.
    """

    envelope: Envelope
    recipients: tuple[ForwardPath, ...]
    content: Content = field(repr=False)
    whole: bool = False
    encoded: str = ""


class TransactionResult(Struct, frozen=True):
    """The result; keys and `again` are indexes into Transaction.recipients.

    `again` are recipients that did not fit (452, LIMITS): send them in a new transaction at once,
    as part of the same attempt. Every other recipient has an outcome, unless `stale`: a reused
    connection was closed already, or its host defers MAIL, which says something of the session.
    Nothing was attempted; repeat on a new one. `never_begun`: no reply to MAIL, or a 421.
    `lacking`: the host does not offer what the message needs; nothing was sent, and another host
    may offer it.
    """

    outcomes: Mapping[int, Outcome]
    again: tuple[int, ...] = ()
    reusable: bool = False
    stale: bool = False
    never_begun: bool = False
    lacking: bool = False


class TransactionProgress:
    """The state of a transaction. It takes each reply in order and has the outcomes so far.

    `never_begun`: no reply to MAIL, or a 421. `mail_deferred`: no reply to MAIL, or 4yz.
    `closing`: the connection cannot be used any more.
    """

    def __init__(
        self, count: int, asked: Sequence[int], peer: Peer, *, whole: bool = False
    ) -> None:
        """`count` is the number of recipients, of which those `asked`, by index, get RCPT in this
        transaction; `whole` as in Transaction.
        """
        self.asked = asked
        self.outcomes: dict[int, Outcome] = {}
        self.accepted: list[int] = []
        self.stage = SmtpStage.MAIL
        self.closing = False
        self.never_begun = self.mail_deferred = True
        self._all = range(count)
        self._again = sorted(set(self._all).difference(asked))
        self._whole = whole
        self._peer = peer
        self._answered = 0  # replies to the final dot

    @property
    def replies_to_dot(self) -> int:
        """How many replies follow the final dot."""
        return len(self.accepted) if self._peer.lmtp else 1

    def mail(self, reply: Reply) -> bool:
        """Take the reply to MAIL; return whether recipients may follow."""
        self.stage = SmtpStage.RCPT
        self.never_begun = closes_connection(reply)
        self.mail_deferred = self.never_begun or reply.code // 100 == 4
        return self._go_on(SmtpStage.MAIL, reply)

    def rcpt(self, index: int, reply: Reply) -> None:
        """Take the reply to the RCPT of recipient `index`."""
        if index in self.outcomes:  # MAIL was rejected: this reply adds nothing
            return
        outcome = classify(SmtpStage.RCPT, reply, self._peer)
        if outcome is None:
            self.accepted.append(index)
        elif self.accepted and is_recipient_limit(reply) and not self._whole:
            self._again.append(index)
        else:
            self.outcomes[index] = outcome
            self._check_for_end(reply, outcome)

    def data(self, reply: Reply) -> bool:
        """Take the reply to DATA; return whether content, or at least a lone dot, must follow."""
        self.stage = SmtpStage.DATA
        rejected = list(self.outcomes.values())
        if self._whole and self.accepted and rejected:
            self.closing = True  # without the final dot, the peer drops the transaction
            later = [outcome for outcome in rejected if isinstance(outcome, Deferred)]
            self._set(self.accepted, (later or rejected)[0])
            return False
        if self.accepted:
            return self._go_on(SmtpStage.DATA, reply)
        self.closing = closes_connection(reply) or reply.code // 100 == 2
        if self._peer.lmtp and reply.code // 100 == 3:  # RFC 2033 4.2: it must not
            self.closing = True  # it is not known how many replies would follow a final dot
            return False
        return reply.code // 100 == 3

    def dot_written(self) -> None:
        """From here on, recipients are indeterminate if the connection is lost."""
        self.stage = SmtpStage.DOT

    def dot(self, reply: Reply) -> bool:
        """Take a reply to the final dot; return whether another one follows."""
        outcome = classify(SmtpStage.DOT, reply, self._peer)
        assert outcome is not None
        if self._peer.lmtp:
            return self._dot_of_one(reply, outcome)
        self._set(self.accepted, outcome)
        self._check_for_end(reply, outcome)
        return False

    def _dot_of_one(self, reply: Reply, outcome: Outcome) -> bool:
        """Take the reply for the next accepted recipient. After an invalid reply, it is not
        known to which recipients the following ones belong.
        """
        index = self.accepted[self._answered]
        self._answered += 1
        is_none = isinstance(outcome, Indeterminate)
        self._set(self.accepted if is_none else [index], outcome)
        self.closing = self.closing or is_none or closes_connection(reply)
        return self._answered < len(self.accepted) and not is_none

    def broken(
        self, trouble: SessionFailure, parts: str, *, unsolicited: Reply | None = None
    ) -> None:
        """The connection broke; `unsolicited` is a reply that came too early.

        A 4yz or 5yz reply while the content was being sent is the reply to the message.
        """
        self.closing = True
        outcome: Outcome | None = None
        if (
            unsolicited is not None
            and self.stage is SmtpStage.DATA
            and unsolicited.code // 100 in (4, 5)
        ):
            outcome = classify(SmtpStage.DATA, unsolicited, self._peer)
        if outcome is None:
            outcome = classify_session_failure(self.stage, trouble, parts, peer=self._peer)
        self._set(self.accepted if self.stage is SmtpStage.DOT else self._all, outcome)

    def unreadable(self, parts: str) -> None:
        """The content cannot be read to its end: the peer must never get a final dot after it."""
        self.closing = True
        # RFC 3463 3.4
        evidence = Evidence("4.3.0", f"451 4.3.0 the message cannot be read: {parts}")
        self._set(self._all, Deferred(evidence, DeferralClass.CONTENT))

    def result(self) -> TransactionResult:
        """The result for the caller."""
        again = tuple(index for index in self._again if index not in self.outcomes)
        return TransactionResult(
            self.outcomes, again, reusable=not self.closing, never_begun=self.never_begun
        )

    def _go_on(self, stage: SmtpStage, reply: Reply) -> bool:
        outcome = classify(stage, reply, self._peer)
        if outcome is None:
            return True
        self._check_for_end(reply, outcome)
        held_back = frozenset(self._again if stage is not SmtpStage.MAIL else ())
        self._set([index for index in self._all if index not in held_back], outcome)
        return False

    def _check_for_end(self, reply: Reply, outcome: Outcome) -> None:
        """After a 421 or an invalid code, all recipients without an outcome share this one.

        After the final dot, recipients held back for `again` are not affected.
        """
        if closes_connection(reply):
            self.closing = True
            self._set(self._all, outcome)
        elif reply.code // 100 in (2, 3) and not isinstance(outcome, Success):
            self.closing = True
            if self.stage is not SmtpStage.DOT:
                self._set(self._all, outcome)

    def _set(self, indexes: Iterable[int], outcome: Outcome) -> None:
        for index in indexes:
            self.outcomes.setdefault(index, outcome)


class Extensions(Struct, frozen=True):
    """The extensions that a peer offers; a limit of 0 is none."""

    pipelining: bool = False  # RFC 2920
    eight_bit: bool = False  # RFC 6152
    smtputf8: bool = False  # RFC 6531
    dsn: bool = False  # RFC 3461
    size: bool = False  # RFC 1870
    size_max: int = 0  # octets of a message
    recipients_max: int = 0  # of a transaction: RFC 9422
    domains_max: int = 0  # of the recipients of a transaction
    transactions_max: int = 0  # of a session
    requiretls: bool = False  # RFC 8689

    @classmethod
    def offered(cls, keyparts: Mapping[str, str], *, in_tls: bool = False) -> Self:
        """Parse the keyparts of EHLO (lower case) and their parameters. REQUIRETLS counts `in_tls`
        only (RFC 8689 2).
        """
        size = keyparts.get("size", "").strip()
        limits = _limits(keyparts.get("limits", ""))
        return cls(
            pipelining="pipelining" in keyparts,
            eight_bit="8bitmime" in keyparts,
            smtputf8="smtputf8" in keyparts,
            dsn="dsn" in keyparts,
            size="size" in keyparts,
            size_max=int(size) if size.isascii() and size.isdigit() and len(size) <= 20 else 0,
            recipients_max=limits.get("RCPTMAX", 0),
            domains_max=limits.get("RCPTDOMAINMAX", 0),
            transactions_max=limits.get("MAILMAX", 0),
            requiretls=in_tls and "requiretls" in keyparts,
        )


def _limits(text: str) -> dict[str, int]:
    """Parse the parameters of LIMITS; what has no number of 1 to 6 digits, or is 0, is ignored."""
    pairs = [word.upper().partition("=") for word in text.split()]
    return {
        name: int(value)
        for name, _, value in pairs
        if value.isascii() and value.isdigit() and len(value) <= 6
    }


class Unsupported(Struct, frozen=True):
    """Why a message cannot be sent to this peer: RFC 3463 status and text; `lacking` as in
    TransactionResult.
    """

    status: str
    text: str
    lacking: bool = True

    def result(self, count: int, peer: Peer) -> TransactionResult:
        """Return the result of a transaction with `count` recipients: all have failed."""
        failed = Failed(peer.evidence(self.status, f"{self.status} {self.text}"))
        outcomes = dict.fromkeys(range(count), failed)
        return TransactionResult(outcomes, reusable=True, never_begun=True, lacking=self.lacking)


def plan(transaction: Transaction, offered: Extensions) -> Sequence[int] | Unsupported:
    """Return which recipients get RCPT at this peer, by index; the others are `again`.

    Without SMTPUTF8 those in ASCII are asked, if there are any; of these, as many as LIMITS allows
    (RFC 9422). With `whole` all or none are asked.
    """
    sender, *recipients = _addresses(transaction)
    if not all(map(str.isprintable, [sender, *recipients])):
        return Unsupported("5.1.3", "an address has a control character", lacking=False)
    asked: Sequence[int] = range(len(recipients))
    if not offered.smtputf8:
        asked = [index for index in asked if recipients[index].isascii()]
        needed = len(recipients) if transaction.whole else 1
        if len(asked) < needed or not sender.isascii():
            return Unsupported("5.6.7", "an address needs SMTPUTF8, which the host does not offer")
    size, size_max = size_of(transaction.content), offered.size_max
    if 0 < size_max < size:
        text = f"the message has {size} bytes, the host accepts at most {size_max}"
        return Unsupported("5.3.4", text)
    if transaction.whole:
        return asked
    if offered.domains_max:
        domains = dict.fromkeys(domain_of(recipients[index]) for index in asked)
        first = set([*domains][: offered.domains_max])
        asked = [index for index in asked if domain_of(recipients[index]) in first]
    return asked[: offered.recipients_max or None]


def needs_smtputf8(transaction: Transaction) -> bool:
    """Whether an address is not ASCII, or the header is not and the client declared SMTPUTF8."""
    if not all(map(str.isascii, _addresses(transaction))):
        return True
    content = memory_part(transaction.content)
    if not transaction.envelope.smtputf8 or content.isascii():
        return False
    return not content.partition(b"\r\n\r\n")[0].isascii()


def mail_command(transaction: Transaction, offered: Extensions) -> bytes:
    """Return MAIL FROM with SIZE, BODY, SMTPUTF8, RET, ENVID and REQUIRETLS as far as the peer
    offers them.
    """
    parts = [f"MAIL FROM:<{transaction.envelope.reverse_path}>"]
    if offered.size:
        parts.append(f"SIZE={size_of(transaction.content)}")
    if offered.eight_bit and (transaction.envelope.eight_bit or is_eight_bit(transaction.content)):
        parts.append("BODY=8BITMIME")
    if offered.smtputf8 and needs_smtputf8(transaction):
        parts.append("SMTPUTF8")
    if offered.dsn and transaction.envelope.ret:
        parts.append(f"RET={transaction.envelope.ret}")
    if offered.dsn and transaction.envelope.envid:
        parts += _parameter("ENVID", encode_xtext, transaction.envelope.envid)
    if offered.requiretls and transaction.envelope.has_requiretls:
        parts.append("REQUIRETLS")
    return " ".join(parts).encode() + b"\r\n"


def rcpt_command(recipient: ForwardPath, offered: Extensions) -> bytes:
    """Return RCPT TO, with NOTIFY and ORCPT if the peer offers DSN."""
    parts = [f"RCPT TO:<{recipient.address}>"]
    if offered.dsn and recipient.notify:
        parts.append("NOTIFY=" + ",".join(sorted(recipient.notify)))
    if offered.dsn and recipient.orcpt:
        parts += _parameter("ORCPT", encode_orcpt, recipient.orcpt)
    return " ".join(parts).encode() + b"\r\n"


def dot_stuffed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the blocks dot-stuffed, wherever they are cut, and a missing last CRLF.

    The final dot is not included.
    """
    before = b"\r\n"  # the last two octets so far
    for block in blocks:
        if not block:
            yield block  # for next_block()
            continue
        # Base64 has no dots, and a search for one octet is many times faster than one for three.
        after = block.replace(b"\r\n.", b"\r\n..") if b"." in block else block
        if block.startswith(b"."):
            if before == b"\r\n":
                after = b"." + after
        elif block.startswith(b"\n.") and before.endswith(b"\r"):
            after = b"\n." + after[1:]
        before = block[-2:] if len(block) > 1 else before[-1:] + block
        yield after
    if before != b"\r\n":
        yield b"\r\n"


def _addresses(transaction: Transaction) -> Sequence[str]:
    recipients = [recipient.address for recipient in transaction.recipients]
    return [transaction.envelope.reverse_path, *recipients]


def _parameter(name: str, encode: Callable[[str], str], value: str) -> list[str]:
    """Return NAME=value, or nothing for a value that cannot be encoded."""
    try:
        return [f"{name}={encode(value)}"]
    except ValueError:
        return []
