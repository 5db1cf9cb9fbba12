"""A transaction as values, and what turns its replies into an outcome per recipient.

On the path: delivery and pickup make a Transaction; connection feeds its replies to Progress.
Holds: sans-I/O; an outcome is never overwritten; only an accepted RCPT can end as Relayed.
Fails: never.
Standards: RFC 5321 3.3, 4.5.3.1.10; RFC 3461 (parameters); RFC 1047.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
from relay.message.content import Content
from relay.message.envelope import Notify
from relay.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Outcome,
    Relayed,
)


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
