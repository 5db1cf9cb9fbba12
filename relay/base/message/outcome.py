"""The outcome of a delivery attempt for one recipient, and the table from SMTP replies to outcomes.

The SMTP client calls classify() for each reply and classify_session_failure() for each broken
session. Delivery and pickup act on the result, the spool stores it, DSNs report it. An outcome is
one of six classes, matched exhaustively. Only a 2yz reply to the final dot is Relayed, or Delivered
by LMTP. After the final dot, only a 4yz or 5yz reply proves that the message was not accepted. A
reply that is not SMTP also has an outcome.
RFC 5321 4.2, 4.3.2, 4.5.3.1.10; RFC 2033 (LMTP); RFC 3463 (status); RFC 3464 2.3; RFC 7504 (521,
556); RFC 1047 (why Indeterminate exists).
"""

import re
from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct

from relay.base.message.receipt import ReceiptRequest

INTERNAL_ERROR = "internal error in the relay; its log has the details"


class DeferralClass(StrEnum):
    """Why a recipient was deferred; also a label of metrics."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    AUTH = "auth"
    PROTOCOL = "protocol"
    SITE = "site"  # 4yz to the session or the transaction, and 421 to any command
    RECIPIENT = "recipient"  # 4yz to one RCPT, such as greylisting
    MAILBOX = "mailbox"  # a local mailbox is full or cannot be written
    CONTENT = "content"  # the stored message cannot be read
    INTERNAL = "internal"


class SessionEvidence(Struct, frozen=True):
    """How a session was set up.

    `verified` is what its TLS handshake verified: none, chain, name or dane. `level` is the TLS
    level that was required. `connect_ms` is the time until the greeting, None for a connection that
    was open already; `tls_ms` is the time for TLS. `mismatch` is the result type (RFC 8460 4.3) of
    a failure that an MTA-STS policy in testing mode only reports.
    """

    verified: str = "none"
    level: str = ""
    connect_ms: float | None = None
    tls_ms: float = 0.0
    mismatch: str = ""


class Evidence(Struct, frozen=True):
    """The reply that an outcome is based on."""

    status: str  # an RFC 3463 code
    reply: str  # of the remote host as "550 5.1.1 text", or a text of this relay
    host: str = ""  # the MTA's name; "" for this relay
    remote: bool = False  # whether a remote MTA sent the reply
    tls: str = ""  # the protocol version; "" without TLS
    address: str = ""  # of the connection
    cipher: str = ""  # the cipher suite of TLS
    hosts: tuple[str, ...] = ()  # the result of each host that was tried, if there were several
    graph_id: str = ""  # of the copy in a mailbox of this relay
    receipt: ReceiptRequest | None = None  # that the sender requested
    session: SessionEvidence | None = None  # of the connection
    provider: str = ""  # the [[reply]] table of the configuration that decided instead
    encoded: str = ""  # "8 bit" or "long lines": why the message was encoded again for the host
    pause_s: float = 0.0  # how long the host asks not to be contacted
    left_out: tuple[str, ...] = ()  # addresses that were removed from its copy
    not_carried: tuple[str, ...] = ()  # fields and parts that its converted copy lacks


class Delivered(Struct, frozen=True):
    """Delivered to a local mailbox, or by an LMTP host, where `offers_dsn` is as in Relayed."""

    evidence: Evidence
    offers_dsn: bool = False


class Relayed(Struct, frozen=True):
    """A remote SMTP host accepted the message. `offers_dsn`: it sends delivery reports itself."""

    evidence: Evidence
    offers_dsn: bool = False


class Captured(Struct, frozen=True):
    """A copy is in the recipient's mailbox; the message is not sent, and kept until it expires."""

    evidence: Evidence


class Deferred(Struct, frozen=True):
    """Temporary failure: the recipient is retried."""

    evidence: Evidence
    kind: DeferralClass


class Failed(Struct, frozen=True):
    """Permanent failure. `at_rcpt`: the reply of the host to RCPT, and nothing else, decided."""

    evidence: Evidence
    at_rcpt: bool = False


class Indeterminate(Struct, frozen=True):
    """The session broke after the final dot: the message may have arrived. It is retried.

    `unanswered`: the host did not answer; otherwise this relay was stopped.
    """

    evidence: Evidence
    unanswered: bool = False


# of an attempt that an internal error ended, and of one whose result it kept from being recorded
INTERNAL = Deferred(Evidence("4.3.0", f"451 4.3.0 {INTERNAL_ERROR}"), DeferralClass.INTERNAL)
UNRECORDED = Indeterminate(Evidence("4.3.0", f"451 4.3.0 {INTERNAL_ERROR}; result not recorded"))
Success = Delivered | Relayed  # a host has the message: it must not get it again
Outcome = Delivered | Relayed | Captured | Deferred | Failed | Indeterminate


class SmtpStage(StrEnum):
    """The command of a session or transaction that a reply or failure belongs to."""

    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "EHLO"
    LHLO = "LHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"  # the command and the content, up to the final dot
    DOT = "final dot"


class SessionFailure(StrEnum):
    """Why there was no reply to classify."""

    LOST = "lost"  # refused, unreachable, reset, closed
    TIMEOUT = "timeout"
    SLOW = "slow"  # each wait ended in time, but all together took too long
    PROTOCOL = "nonsense"  # not SMTP, or a reply without a command


class Reply(Struct, frozen=True):
    """One reply: the code of its last line, and its lines joined by a space, printable.

    `doubtful`: the last line has a 2yz code, the first line has another.
    """

    code: int
    text: str
    doubtful: bool = False

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


class Peer(Struct, frozen=True):
    """The remote host of a session."""

    host: str  # its name
    tls: str = ""  # the version; "" without TLS
    offers_dsn: bool = False  # it sends delivery reports itself
    address: str = ""  # of the connection
    cipher: str = ""  # the cipher suite
    hosts: tuple[str, ...] = ()  # as in Evidence
    session: SessionEvidence | None = None  # as in Evidence
    lmtp: bool = False  # it speaks LMTP
    encoded: str = ""  # as in Evidence
    hide: Callable[[str], str] = str  # replaces what the login has sent and no text may repeat

    def evidence(self, status: str, reply: str, *, remote: bool = False) -> Evidence:
        """Return the evidence of a reply of this host, or of a failure to talk to it."""
        return Evidence(
            status,
            self.hide(reply),
            host=self.host,
            remote=remote,
            tls=self.tls,
            address=self.address,
            cipher=self.cipher,
            hosts=self.hosts,
            session=self.session,
            encoded=self.encoded,
        )


class _StageRule(Struct, frozen=True):
    """How replies in one stage are classified.

    `success` is the class of codes with which the session continues. A 5yz reply is permanent only
    if `final`. `status` replaces the status of a code that would be misleading; other failures in
    this stage have it too.
    """

    success: int
    kind: DeferralClass
    final: bool = True
    status: str = ""


_STAGE_RULES = {
    # A banner that rejects concerns one host: the caller tries the other hosts first.
    SmtpStage.BANNER: _StageRule(2, DeferralClass.SITE),
    SmtpStage.EHLO: _StageRule(2, DeferralClass.SITE, final=False),
    SmtpStage.LHLO: _StageRule(2, DeferralClass.SITE, final=False),
    SmtpStage.STARTTLS: _StageRule(2, DeferralClass.TLS, final=False, status="4.7.5"),
    # The operator's credentials are wrong: a sender must not lose mail because of them.
    SmtpStage.AUTH: _StageRule(2, DeferralClass.AUTH, final=False, status="4.7.8"),
    SmtpStage.MAIL: _StageRule(2, DeferralClass.SITE),
    SmtpStage.RCPT: _StageRule(2, DeferralClass.RECIPIENT),
    SmtpStage.DATA: _StageRule(3, DeferralClass.SITE),
    SmtpStage.DOT: _StageRule(2, DeferralClass.SITE),
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
    (SmtpStage.BANNER, 550): "5.3.2",
    (SmtpStage.BANNER, 554): "5.3.2",
    (SmtpStage.MAIL, 552): "5.3.4",
    (SmtpStage.RCPT, 452): "4.5.3",
    (SmtpStage.RCPT, 501): "5.1.3",
    (SmtpStage.RCPT, 550): "5.1.1",
    (SmtpStage.DATA, 552): "5.3.4",
    (SmtpStage.DATA, 554): "5.7.1",
    (SmtpStage.DOT, 552): "5.3.4",
    (SmtpStage.DOT, 554): "5.7.1",
}
_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?=\s|$)")
_CLOSING = 421


def classify(stage: SmtpStage, reply: Reply, peer: Peer) -> Outcome | None:
    """Return the outcome of `reply` for its recipients; None when the session continues.

    At DOT a 2yz reply is Relayed, from an LMTP host Delivered. A code of the wrong class is a
    protocol error, as in classify_session_failure(), and so is a doubtful reply at DOT.
    """
    row = _STAGE_RULES[stage]
    severity = reply.code // 100
    if severity == row.success and stage is not SmtpStage.DOT:
        return None
    if severity == row.success and not reply.doubtful:
        evidence = _evidence(status_of(stage, reply), reply, peer)
        if peer.lmtp:
            return Delivered(evidence, peer.offers_dsn)
        return Relayed(evidence, peer.offers_dsn)
    if severity not in (4, 5):
        text = f"{reply} is not an answer to {stage}"
        return classify_session_failure(stage, SessionFailure.PROTOCOL, text, peer=peer)
    if closes_connection(reply):
        kind = row.kind if row.kind is not DeferralClass.RECIPIENT else DeferralClass.SITE
        return Deferred(_evidence(status_of(stage, reply), reply, peer), kind)
    too_many = stage is SmtpStage.RCPT and _says_too_many(reply)
    if severity == 5 and row.final and not too_many:
        evidence = _evidence(status_of(stage, reply), reply, peer)
        return Failed(evidence, at_rcpt=stage is SmtpStage.RCPT)
    status = row.status or "4" + status_of(stage, reply)[1:]
    return Deferred(_evidence(status, reply, peer), row.kind)


def classify_session_failure(
    stage: SmtpStage, failure: SessionFailure, text: str, *, peer: Peer
) -> Deferred | Indeterminate:
    """Return the outcome for recipients whose session broke at `stage`; `text` says how.

    At DOT it is unknown whether the message arrived (RFC 1047).
    """
    if failure is SessionFailure.SLOW:
        status, kind = "4.4.2", DeferralClass.SITE
    elif stage is SmtpStage.CONNECT:
        status, kind = "4.4.1", DeferralClass.CONNECT
    elif (row := _STAGE_RULES[stage]).status:
        status, kind = row.status, row.kind
    elif failure is SessionFailure.PROTOCOL:
        status, kind = "4.5.0", DeferralClass.PROTOCOL
    else:
        status, kind = "4.4.2", DeferralClass.CONNECT
    evidence = peer.evidence(status, text)
    if stage is SmtpStage.DOT:
        return Indeterminate(evidence, unanswered=True)
    return Deferred(evidence, kind)


def is_recipient_limit(reply: Reply) -> bool:
    """Return whether a reply to RCPT says that there are too many recipients (RFC 5321 4.5.3.1.10).

    This is valid only if an earlier RCPT was accepted. With another enhanced code, 452 and 552 have
    another meaning.
    """
    return reply.code in (452, 552) and (
        _says_too_many(reply) or _ENHANCED.match(reply.text) is None
    )


def closes_connection(reply: Reply) -> bool:
    """Return whether the peer closes the connection after this reply (RFC 5321 3.8)."""
    return reply.code == _CLOSING


def status_of(stage: SmtpStage, reply: Reply) -> str:
    """Return the peer's enhanced status if it has the class of the reply, else the table's."""
    severity = str(reply.code)[0]
    enhanced = _ENHANCED.match(reply.text)
    if enhanced and enhanced[0][0] == severity:
        return enhanced[0]
    by_stage = _STATUS_BY_STAGE.get((stage, reply.code))
    return by_stage or _STATUS_BY_CODE.get(reply.code, f"{severity}.0.0")


def _says_too_many(reply: Reply) -> bool:
    return reply.text.startswith(("4.5.3", "5.5.3")) and _ENHANCED.match(reply.text) is not None


def _evidence(status: str, reply: Reply, peer: Peer) -> Evidence:
    return peer.evidence(status, str(reply), remote=True)
