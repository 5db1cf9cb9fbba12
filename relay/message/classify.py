"""The one table from what a remote host said, or failed to say, to an outcome.

On the path: smtp asks it for each reply and broken session; delivery and pickup act on it.
Holds: nothing but a 2yz to the final dot is Relayed; after that dot only a clear no is a no.
Fails: never; nonsense is an outcome too.
Standards: RFC 5321 4.2, 4.3.2, 4.5.3.1.10; RFC 3463; RFC 7504 (521, 556); RFC 1047.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from relay.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    Relayed,
)


class Stage(StrEnum):
    """How far a session or transaction had come."""

    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"  # the command and the content, up to the final dot
    DOT = "final dot"


class Trouble(StrEnum):
    """What went wrong when there was no reply to classify."""

    LOST = "lost"  # refused, unreachable, reset, closed
    TIMEOUT = "timeout"
    NONSENSE = "nonsense"  # not SMTP, or replies that nobody asked for


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: its code, and its lines joined by a space, printable."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: a host name, and the TLS version or "" in clear."""

    host: str
    tls: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """`goes_on` is the class of codes that lets a session go on; 5yz is final only where `final`.

    `status` replaces what the code would mean, where it would mislead.
    """

    goes_on: int
    kind: DeferralClass
    final: bool = True
    status: str = ""


_ROWS = {
    # A refusing banner speaks for its host: the caller asks the other hosts before it believes it.
    Stage.BANNER: _Row(2, DeferralClass.SITE),
    Stage.EHLO: _Row(2, DeferralClass.SITE, final=False),
    Stage.STARTTLS: _Row(2, DeferralClass.TLS, final=False, status="4.7.5"),
    # The credentials are ours: a sender must not lose mail for them.
    Stage.AUTH: _Row(2, DeferralClass.AUTH, final=False, status="4.7.8"),
    Stage.MAIL: _Row(2, DeferralClass.SITE),
    Stage.RCPT: _Row(2, DeferralClass.RECIPIENT),
    Stage.DATA: _Row(3, DeferralClass.SITE),
    Stage.DOT: _Row(2, DeferralClass.SITE),
}

_STATUS_BY_CODE = {
    421: "4.3.2",
    450: "4.2.0",
    451: "4.3.0",
    452: "4.3.1",
    454: "4.7.0",
    500: "5.5.2",
    501: "5.5.4",
    502: "5.5.1",
    503: "5.5.1",
    504: "5.5.4",
    521: "5.3.2",
    530: "5.7.0",
    535: "5.7.8",
    551: "5.1.6",
    552: "5.2.2",
    553: "5.1.3",
    555: "5.5.4",
    556: "5.1.10",
}
_STATUS_BY_STAGE = {
    (Stage.BANNER, 550): "5.3.2",
    (Stage.BANNER, 554): "5.3.2",
    (Stage.MAIL, 552): "5.3.4",
    (Stage.RCPT, 452): "4.5.3",
    (Stage.RCPT, 501): "5.1.3",
    (Stage.RCPT, 550): "5.1.1",
    (Stage.DATA, 552): "5.3.4",
    (Stage.DATA, 554): "5.7.1",
    (Stage.DOT, 552): "5.3.4",
    (Stage.DOT, 554): "5.7.1",
}
_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?=\s|$)")
_CLOSING = 421


def classify(stage: Stage, reply: Reply, peer: Peer) -> Outcome | None:
    """Return what `reply` means for its recipients; None when the session simply goes on.

    At DOT a 2yz is Relayed. A code of the wrong class is nonsense: see classify_trouble.
    """
    row = _ROWS[stage]
    severity = reply.code // 100
    if severity == row.goes_on:
        if stage is not Stage.DOT:
            return None
        return Relayed(_evidence(status_of(stage, reply), reply, peer))
    if severity not in (4, 5):
        words = f"{reply} is no answer to {stage}"
        return classify_trouble(stage, Trouble.NONSENSE, words, peer=peer)
    if closes(reply):
        kind = row.kind if row.kind is not DeferralClass.RECIPIENT else DeferralClass.SITE
        return Deferred(_evidence(status_of(stage, reply), reply, peer), kind)
    too_many = stage is Stage.RCPT and _says_too_many(reply)
    if severity == 5 and row.final and not too_many:
        return Failed(_evidence(status_of(stage, reply), reply, peer))
    status = row.status or "4" + status_of(stage, reply)[1:]
    return Deferred(_evidence(status, reply, peer), row.kind)


def classify_trouble(
    stage: Stage, trouble: Trouble, words: str, *, peer: Peer
) -> Deferred | Indeterminate:
    """Return the outcome for recipients whose session broke at `stage`; `words` say how.

    At DOT nobody knows whether the message arrived (RFC 1047).
    """
    nonsense = trouble is Trouble.NONSENSE
    if stage is Stage.CONNECT:
        status, kind = "4.4.1", DeferralClass.CONNECT
    elif stage is Stage.STARTTLS:
        status, kind = "4.7.5", DeferralClass.TLS
    elif stage is Stage.AUTH:
        status, kind = "4.7.8", DeferralClass.AUTH
    elif nonsense:
        status, kind = "4.5.0", DeferralClass.PROTOCOL
    else:
        status, kind = "4.4.2", DeferralClass.CONNECT
    evidence = Evidence(status, words, host=peer.host, tls=peer.tls)
    return Indeterminate(evidence) if stage is Stage.DOT else Deferred(evidence, kind)


def is_overflow(reply: Reply) -> bool:
    """Whether a reply to RCPT says that the transaction is full (RFC 5321 4.5.3.1.10).

    It holds only where an earlier RCPT was accepted; with another enhanced code, 452 and 552
    mean something else.
    """
    return reply.code in (452, 552) and (
        _says_too_many(reply) or _ENHANCED.match(reply.text) is None
    )


def closes(reply: Reply) -> bool:
    """Whether the peer is about to close the connection, whatever was asked (RFC 5321 3.8)."""
    return reply.code == _CLOSING


def status_of(stage: Stage, reply: Reply) -> str:
    """Return the peer's enhanced status if its class is the reply's, else the table's."""
    severity = str(reply.code)[0]
    said = _ENHANCED.match(reply.text)
    if said and said[0][0] == severity:
        return said[0]
    by_stage = _STATUS_BY_STAGE.get((stage, reply.code))
    return by_stage or _STATUS_BY_CODE.get(reply.code, f"{severity}.0.0")


def _says_too_many(reply: Reply) -> bool:
    return reply.text.startswith(("4.5.3", "5.5.3")) and _ENHANCED.match(reply.text) is not None


def _evidence(status: str, reply: Reply, peer: Peer) -> Evidence:
    return Evidence(status, str(reply), host=peer.host, remote=True, tls=peer.tls)
