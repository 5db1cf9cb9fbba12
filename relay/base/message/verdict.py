"""The decision of the mail-flow rules: an action per recipient, and the changed contents.

Policy makes it, ingress carries it out, the spool stores the rule hits. There is one
RecipientVerdict for each examined recipient, in the same order; contents[0] is the original.
The terms are those of Exchange's mail flow rules.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import own_mailbox, untagged
from relay.base.message.authentication_results import AuthResult
from relay.base.message.envelope import Source, domain_of, main_address
from relay.base.message.header import ParsedContent

JUNK_EMAIL = "Junk Email"  # the name of the folder, for people
RULES_UNAVAILABLE = "The mail rules of"  # beginning of the reply if a tenant's rules are missing
_NAMED_MAX = 100  # recipients named per hit; a message may have many


def tenant_of_rule(name: str) -> str:
    """Return the tenant of a rule "TENANT/NAME", "" for a rule of the operator."""
    return name.partition("/")[0] if "/" in name else ""


class ExaminedMessage(Struct, frozen=True):
    """The message that the rules examine. `content` has CRLF line ends.

    `sender_local`: the domain of the reverse-path is local and the session was trusted.
    `recipients` are the addresses of valid recipients; `local` are those of own domains.
    """

    reverse_path: str  # "" is the null reverse-path
    sender_local: bool  # see above
    recipients: tuple[str, ...]  # the rules apply to each of them
    local: frozenset[str]  # see above
    content: ParsedContent  # with its header cleaned up
    source: Source  # how it arrived
    client: str = ""  # the IP address of the SMTP client; "" on Relay's own socket
    login: str = ""  # the account that sent it, by AUTH or the API; "" for strangers
    recipient_count: int = (
        0  # that the client named, before aliases and the rejection of invalid ones
    )
    time_us: int | None = None  # for the dates of rules; None: they do not count
    is_own: Callable[[str], bool] = lambda _domain: False  # whether a domain (A-labels) is own
    # by an own domain with `alias_of`: the domain that this names
    alias_domains: Mapping[str, str] = {}
    results: tuple[AuthResult, ...] = ()  # written by milters of this relay, not by other hosts
    # by own_mailbox() of a recipient: the addresses of the client that aliases expand to it
    originals: Mapping[str, Sequence[str]] = {}

    def names_of(self, recipient: str) -> Sequence[str]:
        """Return the address of a recipient, and the addresses that the client gave for it."""
        return (recipient, *self.originals.get(own_mailbox(recipient), ()))

    def forms_of(self, addresses: Sequence[str]) -> Sequence[str]:
        """Return addresses with all equivalent forms.

        An address in an own domain is returned also without its tag, and in the domain that
        `alias_of` names; the last form has neither the tag nor the alias domain.
        """
        if not self.alias_domains and "+" not in "".join(addresses):  # nearly always
            return addresses
        forms: list[str] = []
        for address in addresses:
            forms.append(address)
            if self.is_own(domain_of(address)):
                main = main_address(address, self.alias_domains)
                forms += (untagged(address), main, untagged(main))
        return forms


class VerdictAction(StrEnum):
    """The action for one recipient."""

    DELIVER = "deliver"
    REJECT = "reject"
    DISCARD = "discard"
    REDIRECT = "redirect"
    QUARANTINE = "quarantine"  # a REDIRECT that is hidden from the sender


class Hold(Struct, frozen=True):
    """A rule holds the copy until an operator releases or cancels it, or the hold expires."""

    reason: str  # for people
    rule: str  # the first rule that held it
    expires_s: float | None = None  # after the acceptance; None: as the queue's mail does
    silent: bool = False  # nothing is reported when it expires
    notice: str = ""  # the text of a mail to the sender, "" for none


class RecipientVerdict(Struct, frozen=True):
    """The decision about one recipient."""

    address: str  # as in ExaminedMessage.recipients
    action: VerdictAction = VerdictAction.DELIVER  # the last one that rules decided
    content: int = 0  # an index into the verdict's contents
    rule: str = ""  # that decided the action, "" if none did
    status: str = ""  # of a REJECT (RFC 3463)
    text: str = ""  # of a REJECT, for the sender
    successors: tuple[str, ...] = ()  # of a REDIRECT or a QUARANTINE
    hold: Hold | None = None  # of a copy to DELIVER, or of the copies for `successors`
    next_hop: str = ""  # of a copy to DELIVER: "route:NAME" or a URL that a rule chose
    # of a copy to DELIVER into Junk Email: its hold if the mailbox is not on this relay
    junk: Hold | None = None
    in_junk: bool = False  # a copy to DELIVER into Junk Email, if the mailbox is on this relay
    tenant: str = ""  # of the recipient, "" unless the rules of this tenant ran

    @property
    def quarantined(self) -> str:
        """Where the copy is quarantined: a folder or an address, "" for one that is not."""
        if self.action is VerdictAction.QUARANTINE:
            return ", ".join(self.successors)
        return JUNK_EMAIL if self.in_junk else ""

    def held(self, *, in_mailbox: bool) -> Hold | None:
        """Return the hold of the copy, which goes into a mailbox of this relay or leaves."""
        return self.hold if in_mailbox else self.junk or self.hold


class AddedRecipient(Struct, frozen=True):
    """A recipient that a rule added (cc, bcc, or the target of a redirect).

    `hold` comes from a recipient who was redirected while held. With `is_quarantine`, the copy is
    hidden from the sender.
    """

    address: str
    rule: str
    content: int = 0
    hold: Hold | None = None
    is_quarantine: bool = False
    tenant: str = ""  # of the recipients because of which it was added, as in RecipientVerdict
    acted_for: str = ""  # the first recipient for whom the rule acted, if possible a local one


class RuleMail(Struct, frozen=True):
    """A mail about the message that a rule sends: a journal report or, with a text, a notice."""

    to: str
    rule: str
    recipients: tuple[str, ...]  # that the rule matched; of a journal, without those rejected
    text: str = ""  # of a notice

    @property
    def kind(self) -> str:
        """The action of the rule: a journal or a notice."""
        return "notify" if self.text else "journal"


def mails_about(
    recipients: Sequence[RecipientVerdict], mails: Iterable[RuleMail]
) -> Iterator[RuleMail]:
    """Yield the mails; rejected recipients are left out of journals.

    If all recipients are rejected, there is no mail.
    """
    rejected = {verdict.address for verdict in recipients if verdict.action is VerdictAction.REJECT}
    if all(verdict.action is VerdictAction.REJECT for verdict in recipients):
        return
    for mail in mails:
        if mail.text or not rejected:
            yield mail
        elif left := tuple([address for address in mail.recipients if address not in rejected]):
            yield replace(mail, recipients=left)


class AddedCopies:
    """Decides which added copies are needed.

    An address gets one copy; it gets a further one for another tenant only if that copy has another
    content or another hold.
    """

    def __init__(self, served: Iterable[str]) -> None:
        """`served` are the addresses that get the message itself."""
        self._copies: dict[str, list[AddedRecipient]] = {
            own_mailbox(address): [] for address in served
        }

    def needs(self, address: str, added: AddedRecipient) -> bool:
        """Return whether an address still needs this copy, and count it as served with it."""
        address = own_mailbox(address)
        before = self._copies.get(address)
        if before is not None and (not before or any(_serves(copy, added) for copy in before)):
            return False
        self._copies.setdefault(address, []).append(added)
        return True


def _serves(copy: AddedRecipient, other: AddedRecipient) -> bool:
    is_same = (copy.content, copy.hold) == (other.content, other.hold)
    return is_same or copy.tenant in ("", other.tenant)


class Finding(Struct, frozen=True):
    """A condition that matched: its key, and the beginning of the value that it compared."""

    condition: str
    value: str


class RuleHit(Struct, frozen=True, omit_defaults=True):
    """A rule that matched.

    `outcome` is what it did, or would have done in audit mode. `because` is the Finding of each
    condition for the first recipient.
    """

    rule: str
    mode: str
    outcome: str
    recipients: tuple[str, ...]
    because: tuple[Finding, ...] = ()
    error: str = ""  # why the rule was skipped
    count: int = 0  # of recipients, in an event that does not name all

    def as_recorded(self) -> "RuleHit":
        """Return the hit for an event, which names some of its recipients."""
        if (count := len(self.recipients)) <= _NAMED_MAX:
            return self
        return replace(self, recipients=self.recipients[:_NAMED_MAX], count=count)


class Deferral(Struct, frozen=True):
    """A rule defers the whole message: the client tries again later (RFC 3463 4.y.z)."""

    status: str
    text: str
    rule: str

    @property
    def hold(self) -> Hold:
        """The hold of a tenant's copies if the message has copies of others, which do not wait."""
        return Hold(f"deferred by {self.rule}: {self.text}", self.rule)


class RateCharge(Struct, frozen=True):
    """How much the message, if accepted, counts against the limit of a `rate_limit` action."""

    rule: str  # each rule counts separately
    per: str  # sender, login or client
    key: str  # the address of the sender, login or client
    recipients: int  # that the rule matched, without those that are rejected
    allowed: int  # recipients
    period_s: float  # in which `allowed` recipients are allowed
    status: str  # of the deferral beyond the limit
    text: str  # of the deferral

    @property
    def deferral(self) -> Deferral:
        """The deferral of a message beyond the limit."""
        return Deferral(self.status, self.text, self.rule)


class Verdict(Struct, frozen=True):
    """The whole decision. If `deferred` is set, the other fields are not used."""

    recipients: tuple[RecipientVerdict, ...]  # in the order of ExaminedMessage.recipients
    additions: tuple[AddedRecipient, ...]  # also of addresses that get the message already
    contents: tuple[ParsedContent, ...]  # that are used; the original is the first one
    hits: tuple[RuleHit, ...]  # in the order of the rules
    deferred: Deferral | None = None  # of the whole message
    charges: tuple[RateCharge, ...] = ()  # against limits, if it is accepted
    sender: str = ""  # replaces a reverse-path that is not null; "": it stays
    mails: tuple[RuleMail, ...] = ()  # about the message, in the order of the rules
    tenants: tuple[str, ...] = ()  # whose rules ran, in this order

    @property
    def recipient_tenants(self) -> frozenset[str]:
        """The tenants of the recipients whose rules ran; none if all copies are of one tenant."""
        tenants = {verdict.tenant for verdict in self.recipients}
        return frozenset(tenants - {""} if len(tenants) > 1 else ())

    @property
    def rejects_all(self) -> bool:
        """Whether every recipient is rejected."""
        return all(verdict.action is VerdictAction.REJECT for verdict in self.recipients)

    @property
    def added(self) -> tuple[AddedRecipient, ...]:
        """The additions, without addresses that get the message already.

        More of them may turn out equal when aliases are expanded. A recipient whose copy was
        redirected or rejected may still be the target of another rule: two recipients that are
        redirected to each other both get the message.
        """
        delivered = [
            verdict for verdict in self.recipients if verdict.action is VerdictAction.DELIVER
        ]
        copies = AddedCopies(verdict.address for verdict in delivered)
        # needs() counts the address of a copy as served
        return tuple(copy for copy in self.additions if copies.needs(copy.address, copy))

    def deferred_for(self, *deferrals: Deferral) -> Self:
        """Return the verdict with deferrals of recipients' tenants.

        The copies of these tenants are held and do not count against limits of their rules.
        """
        holds = {tenant_of_rule(deferral.rule): deferral.hold for deferral in deferrals}
        charges = tuple(
            charge for charge in self.charges if tenant_of_rule(charge.rule) not in holds
        )
        return replace(self.with_holds(holds.get), charges=charges)

    def with_holds(self, hold_of: Callable[[str], Hold | None]) -> Self:
        """Return the verdict with holds for copies that are sent on and not held yet.

        `hold_of` returns the hold for the tenant of a copy, None for no hold.
        """
        sent_on = (VerdictAction.DELIVER, VerdictAction.REDIRECT, VerdictAction.QUARANTINE)
        recipients = []
        for verdict in self.recipients:
            hold = hold_of(verdict.tenant)
            if hold is not None and verdict.hold is None and verdict.action in sent_on:
                recipients.append(replace(verdict, hold=hold, rule=verdict.rule or hold.rule))
            else:
                recipients.append(verdict)
        additions = [
            replace(copy, hold=copy.hold or hold_of(copy.tenant)) for copy in self.additions
        ]
        return replace(self, recipients=tuple(recipients), additions=tuple(additions))

    def into_junk(self) -> Self:
        """Return the verdict in which copies for mailboxes go into Junk Email."""
        recipients = [
            replace(verdict, in_junk=verdict.action is VerdictAction.DELIVER)
            for verdict in self.recipients
        ]
        return replace(self, recipients=tuple(recipients))

    def without_holds_of(
        self, tenant: str, status: str, text: str, *, in_mailboxes: Collection[str]
    ) -> Self:
        """Return the verdict in which the copies that rules of this tenant hold are rejected.

        Addresses `in_mailboxes` have mailboxes on this relay.
        """
        recipients = []
        for verdict in self.recipients:
            hold = verdict.held(in_mailbox=verdict.address in in_mailboxes)
            if hold is None or tenant_of_rule(hold.rule) != tenant:
                recipients.append(verdict)
                continue
            rejected = replace(
                verdict,
                action=VerdictAction.REJECT,
                rule=hold.rule,
                status=status,
                text=text,
                successors=(),
                hold=None,
                junk=None,
                in_junk=False,
            )
            recipients.append(rejected)
        return replace(
            self,
            recipients=tuple(recipients),
            mails=tuple(mails_about(recipients, self.mails)),
            additions=tuple(
                copy
                for copy in self.additions
                if copy.hold is None or tenant_of_rule(copy.hold.rule) != tenant
            ),
        )

    def rule_of(self, address: str) -> str:
        """Return the rule that decided about a recipient, "" if none did."""
        return next((verdict.rule for verdict in self.recipients if verdict.address == address), "")
