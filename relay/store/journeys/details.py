"""What is recorded of an event, of each kind: its `detail` in docs/names.md.

Writers make these values, and an Event takes one. What is stored is shown as it is: keys that
this Relay does not know, of an older or newer one, stay in it. Readers get the JSON, and what they
need of it by read_detail().

The fields have the order of the JSON. One with its plain default is left out. One that has a
default_factory such as list[int] is written even if it is empty: msgspec leaves out what `list`
and `dict` themselves make.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from msgspec import UNSET, Struct, UnsetType, convert, field
from msgspec.json import Decoder

from relay.base.message.envelope import Client
from relay.base.message.verdict import RuleHit


class Detail(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is recorded of an event, without the fields that do not apply."""

    step: ClassVar[int]
    node: str = ""  # the node that recorded it, if several nodes share the store


class CreatedDetail(Detail, frozen=True):
    """A draft was created in this folder."""

    step = 1
    folder: str = ""


class NotifiedDetail(Detail, frozen=True):
    """A draft was submitted; also what happened to the submission before step 3."""

    step = 2
    deferred_until: str = ""  # the time of a scheduled send
    client: Client | None = None  # the HTTP client
    waits: str = ""  # the reply after which pickup tries again
    sent_now: str = ""  # when `who` sent it before its time
    who: str = ""
    held: str = ""  # since when it is held, for this `reason`
    released: str = ""  # when `who` released it
    cancelled: str = ""  # the time of its cancellation, for this `reason`
    reason: str = ""
    not_answered: bool = False  # the disk failed before the response to the client


class ConvertedDetail(Detail, frozen=True):
    """A draft was converted, or its conversion or submission failed or has an unknown outcome."""

    step = 3
    size: int = 0  # of the message, in octets
    recipients: int = 0
    draft: str = ""  # `properties` or `MIME`
    draft_size: int = 0  # of its file
    changes: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()  # that were repaired
    failed: str = ""  # the reply
    unknown: str = ""  # the reply of an attempt, if the message may have been sent


class AcceptedDetail(Detail, frozen=True):
    """The message was accepted. Mail by SMTP has no `folder` and no step before."""

    step = 4
    folder: str | UnsetType | None = UNSET  # None: the draft was removed
    queue_id: str = ""
    folder_gone: str = ""  # the requested folder, if it does not exist


class MilterSaid(Struct, frozen=True):
    """The last answer of a milter about a message."""

    name: str
    stage: str  # of the session, such as mail, header, end of message
    answer: str  # continue, accept, reject, tempfail, reply, discard, shutdown, down
    reason: str = ""  # the reply, the reason of quarantine, or why it is down
    changes: tuple[str, ...] = ()  # in words, such as "add X-Spam"


class SignedWith(Struct, frozen=True):
    """A key that has signed a message."""

    domain: str
    selector: str
    algorithm: str


class ReplacedSender(Struct, frozen=True):
    """The reverse-path that the client gave, and the reverse-path that a rule put in its place."""

    given: str = field(name="from")
    to: str


class UsedRules(Struct, frozen=True, omit_defaults=True):
    """Which rules ran on a message: those of the operator ("" for none), and those of tenants."""

    hash: str
    loaded: str  # when, in RFC 3339
    tenants: dict[str, str] = {}  # hashes
    own: str = ""  # the tenant whose rules the sender's account may see


class RefusedRecipient(Struct, frozen=True):
    """A recipient that failed, and the reply."""

    address: str
    reply: str


class SentMail(Struct, frozen=True):
    """A journal report or notice of rules."""

    kind: str
    queue_id: str
    to: str
    rules: tuple[str, ...]


class RoutedDetail(Detail, frozen=True):
    """What rules, milters and routes made of a message.

    Lists of addresses may be truncated. `counts` has the full lengths then: by next hop, and for
    `aliases` and `refused`.
    """

    step = 5
    rules: list[RuleHit] = field(default_factory=list[RuleHit])
    next_hops: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    about: str = ""  # the queue id of the message that a report is about
    dkim: list[SignedWith] = []  # {domain, selector, algorithm} of each signature
    unsigned: str = ""  # why a copy has no signature
    used: UsedRules | None = field(default=None, name="set")  # {hash, loaded, tenants, own}
    routes: dict[str, list[str]] = {}  # by next hop
    sender: ReplacedSender | None = None  # {from, to}: the reverse-path that a rule replaced
    held: dict[str, list[str]] = {}  # addresses by the reason
    quarantined: dict[str, list[str]] = {}  # addresses by the rule, and where they are
    client: Client | None = None  # the SMTP client
    bare_lf: bool = False  # lines ended in LF alone; they became CRLF
    aliases: list[str] = []  # that were expanded
    senders: dict[str, str] = {}  # the sender of forwarded mail, by alias
    refused: list[RefusedRecipient] = []  # {address, reply}
    counts: dict[str, int] = {}
    milters: tuple[MilterSaid, ...] = ()
    checks: dict[str, Any] | None = None  # as `checks` of the message
    tls: str = ""  # the demand: requiretls, requiretls if offered, optional
    mails: list[SentMail] = []  # {kind, queue_id, to, rules}: mail that rules made


class AttemptedRecipient(Struct, frozen=True, omit_defaults=True):
    """The outcome of an attempt for one recipient."""

    number: int
    address: str
    outcome: str  # a state; also indeterminate
    status: str
    reply: str
    graph_id: str = ""  # of the copy in a mailbox of this relay
    provider: str = ""  # the [[reply]] entry that decided the outcome


class AttemptDetail(Detail, frozen=True):
    """An attempt to deliver, or the expiry of an entry, which has no attempt, host and tls."""

    step = 6
    entry: int = 0
    attempt: int = 0  # its number; 0 for an expiry
    next_hop: str = ""
    route: str = ""  # the route that chose the next hop
    host: str | UnsetType = UNSET  # "" without a session; `tls` too
    tls: str | UnsetType = UNSET
    expired: int = 0  # the number of recipients
    recipients: list[AttemptedRecipient] = field(default_factory=list[AttemptedRecipient])
    address: str = ""  # of the connection
    cipher: str = ""
    hosts: tuple[str, ...] = ()  # the result of each host that was tried, if there are several
    encoded: str = ""  # why the message was encoded again for the host, or into what
    left_out: tuple[str, ...] = ()  # addresses that left To, Cc and Bcc of the copy for Graph
    not_carried: tuple[str, ...] = ()  # fields and parts that a copy converted for Graph lacks
    policy: str = ""  # who demanded which TLS level; "": the usual level, or no host
    verified: str = ""  # by the TLS handshake; "": none
    durations: dict[str, float] = {}  # fields of Durations
    mx: tuple[str, ...] = ()  # "PREFERENCE HOST", or "PREFERENCE HOST: why it was skipped"
    mx_more: int = 0  # the number of further hosts
    held: str = ""  # why an operator must act
    retry: str = ""  # the time of the next attempt
    rule: str = ""  # the rule whose hold ended
    silent: bool = False  # the sender does not see it


class CommandDetail(Detail, frozen=True):
    """A command for entries: by an operator, or by the relay itself."""

    step = 6
    operation: str = ""  # also `cancel ordered`, `cancel withdrawn`, `cancel too late: sent`
    entries: list[int] = field(default_factory=list[int])
    holds: dict[str, str] = {}  # why a route holds entries, by their numbers
    who: str = ""
    why: str = ""
    restored: bool = False  # a hold of restored mail
    until: str = ""  # the end of a hold
    due: dict[str, str] = {}  # when entries were due before a hold, in queue time
    deferred: list[int] = []  # entries that had been attempted before a hold that ends
    before: dict[str, str] = field(default={}, name="from")  # next hops by entry
    to: list[str] = []  # next hops
    copies: list[str] = []  # addresses that get a copy
    bounce: bool = False  # the sender gets a report, with this text
    text: str = ""
    # what may be left in Drafts of Microsoft Graph: the mailbox, and the id or Message-ID
    drafts: list[str] = []


# Kinds of reports of which only operators read: to the postmaster, and the copy of a report.
POSTMASTER, COPY = "postmaster", "copy"


class ReportDetail(Detail, frozen=True):
    """A report to a sender, or why no report is sent."""

    step = 7
    report_id: str = ""  # its queue id
    to: str = ""
    kind: str = ""  # also `held`, `reply`, `delayed`
    recipients: list[str] = []  # the recipients that it is about
    by_graph_as: str = ""  # the mailbox as whose mail it leaves by Microsoft Graph
    since: str = ""  # of a delay
    until: str = ""  # of a delay
    left_out: str = ""  # why it is not sent; then without `report_id` and `to`
    entry: int = 0  # of a delay
    reply: str = ""  # of a submission that has failed
    reason: str = ""

    @property
    def is_of_operators(self) -> bool:
        """Whether no sender sees it."""
        return self.kind in (POSTMASTER, COPY)


class SubmissionReportDetail(Detail, frozen=True):
    """The report on a failed submission; it is in a mailbox. Read as ReportDetail."""

    step = 7
    kind: str
    to: str
    reply: str
    reason: str = ""  # why it is in no other mailbox


class ReportSource(Struct, frozen=True):
    """The sender of a report from outside; either field may be "".

    It is the IP address of the client that brought the report, and the name that the reporting host
    gives itself.
    """

    client: str
    reporting_mta: str

    @property
    def name(self) -> str:
        """The host, with the address from which the report came."""
        if self.reporting_mta and self.client:
            return f"{self.reporting_mta} [{self.client}]"
        return self.reporting_mta or self.client or "a host"


class ClaimDetail(Detail, frozen=True, tag_field="by", tag="remote"):
    """What a report from outside claims about a recipient; `by` is "remote"."""

    step = 7
    kind: str = ""
    recipients: list[str] = []
    status: str = field(default_factory=str)
    reply: str = field(default_factory=str)
    host: str = field(default_factory=str)
    source: ReportSource = ReportSource("", "")
    received: str = ""  # the queue id of the report
    more: int = 0  # further reports


class ComplaintDetail(Detail, frozen=True, tag_field="kind", tag="complaint"):
    """What a feedback report says of a message, or of some recipients; `kind` is "complaint"."""

    step = 7
    type: str = field(default_factory=str)  # also not-spam, auth-failure, virus, other
    verdict: str = field(default_factory=str)  # of the sender checks on it: pass, fail or none
    source: ReportSource = field(default_factory=lambda: ReportSource("", ""))
    recipients: list[str] = []
    received: str = ""  # the queue id of the report


S = TypeVar("S", bound=Struct)
_KINDS: tuple[type[Detail], ...] = (
    CreatedDetail,
    NotifiedDetail,
    ConvertedDetail,
    AcceptedDetail,
    RoutedDetail,
    AttemptDetail,
    ReportDetail,
)
_OTHERS: tuple[tuple[str, type[Detail]], ...] = (  # each with a key that only it has in its step
    ("operation", CommandDetail),
    ("by", ClaimDetail),
    ("verdict", ComplaintDetail),
)
for _kind in (*_KINDS, *dict(_OTHERS).values()):
    Decoder(_kind)  # builds what threads use later; two that did it at once would end the process


def read_detail(step: int, stored: Mapping[str, Any]) -> Detail:
    """Return the fields of a stored detail that this Relay knows. See read_known()."""
    others = (kind for key, kind in _OTHERS if kind.step == step and key in stored)
    return read_known(next(others, _KINDS[step - 1]), stored)


def read_known(kind: type[S], stored: Mapping[str, Any]) -> S:
    """Return the fields of a JSON object, all of which have defaults. A value of another type than
    that of its field counts as missing.
    """
    try:
        return convert(stored, kind)
    except ValueError:
        known = {}
        for name, value in stored.items():
            with suppress(ValueError):
                convert({name: value}, kind)
                known[name] = value
        return convert(known, kind)
