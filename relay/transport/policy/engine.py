"""The rule engine: the evaluation of a rule set for a message.

An evaluation is a pure function. Every recipient gets exactly one action. No address gets two
copies (but see AddedCopies). A content is copied only if an edit changes it; contents[0] stays the
original. The semantics are those of Exchange's mail flow rules.

Several sets of rules may run, one after the other. A RuleScope says what a set sees of the message,
and whose copies it may change. The rules of a recipients' tenant act on the copies for that tenant
only; they do not defer the mail of others.

An evaluation runs on the event loop until a rule needs something that takes long (a regular
expression, a body), and goes on in a thread from there. Most messages need no thread. Sets of
recipients are integers, with one bit for each recipient.

Raises TooManyPartsError for a message with too many parts; OSError if the body of a large message
cannot be read.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from relay.base.clock import SystemClock
from relay.base.message.address import own_mailbox
from relay.base.message.header import ParsedContent
from relay.base.message.verdict import (
    AddedRecipient,
    Deferral,
    ExaminedMessage,
    Finding,
    Hold,
    RateCharge,
    RecipientVerdict,
    RuleHit,
    RuleMail,
    Verdict,
    VerdictAction,
    mails_about,
)
from relay.store.journeys.details import UsedRules
from relay.transport.policy.archives import MessageArchives
from relay.transport.policy.conditions import AuthCondition
from relay.transport.policy.content_actions import (
    NO_DISCLAIMER_STATUS,
    CcAction,
    DisclaimerAction,
    HeaderEdit,
    SetSenderAction,
    edited,
)
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.message_view import MessageView, OutOfTimeError, UndecidedError
from relay.transport.policy.recipient_actions import (
    BccAction,
    DeferAction,
    DiscardAction,
    HoldAction,
    JournalAction,
    NextHopAction,
    NotifyAction,
    QuarantineAction,
    RateLimitAction,
    RedirectAction,
    RejectAction,
)
from relay.transport.policy.rule_index import RuleIndex, RulePlan
from relay.transport.policy.rules import OnError, Rule, RuleMode, RuleTest

ACTIONS_ON_LOOP_MAX = 100  # actions and rules that are carried out; then a thread goes on
SCOPES_ON_LOOP_MAX = 20  # sets of rules for a message; more of them run in a thread
# of the contents that rules make of a message; beyond it, rules of tenants cannot make another
CONTENTS_OCTETS_MAX = 200_000_000
_clock = SystemClock()
_ADDING = (CcAction, BccAction, RedirectAction, QuarantineAction)
SKIPPED = "error"  # the outcome of a rule that could not be applied
TOO_MANY_PARTS = "The message has too many MIME parts, or nests them too deeply"
TOO_MANY_PARTS_STATUS = "5.6.0"  # RFC 3463 3.7
NOT_APPLIED = "The mail rules could not be applied, try again later"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The active rules in their order, with their tests and their files."""

    rules: tuple[Rule, ...] = ()  # in the order of the files
    tests: tuple[RuleTest, ...] = field(default=(), repr=False)  # in the order of the files
    files: tuple[Path, ...] = ()  # in the order of their names
    digest: str = ""  # of the files, "" without any
    loaded: str = ""  # when, in RFC 3339
    warnings: tuple[str, ...] = ()  # about rules that are off, or that take all mail
    index: RuleIndex = field(init=False, repr=False, compare=False)  # finds the rules

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", RuleIndex(self.rules))

    @property
    def reads_auth(self) -> bool:
        """Whether a rule has the condition `auth`."""
        return any(isinstance(one, AuthCondition) for one in self.index.message_conditions)

    @property
    def identity(self) -> UsedRules | None:
        """The digest of the set and when it was loaded, for journeys; None without files."""
        return UsedRules(self.digest, self.loaded) if self.digest else None

    def evaluate(self, message: ExaminedMessage) -> Verdict:
        """Apply the rules in their order; each sees the changes of those before it.

        Raises TooManyPartsError, OSError.
        """
        evaluation = self.begin(message)
        evaluation.run(in_thread=True)
        return evaluation.verdict()

    def begin(self, message: ExaminedMessage) -> "Evaluation":
        """Return an evaluation that has not run yet."""
        return Evaluation([RuleScope(self, message, range(len(message.recipients)))], message)


class RuleScope(Struct, frozen=True):
    """A set of rules, what it sees of a message, and which recipients' copies it may change."""

    rules: RuleSet | Deferral  # a deferral in place of rules that cannot be used
    message: ExaminedMessage  # as the rules see it
    places: Sequence[int]  # of the recipients that they see
    tenant: str = ""  # "" for the operator's
    # false: the rules may change the copies of these recipients only
    is_whole: bool = True


class _ThreadNeededError(Exception):
    """The next condition takes too long for the event loop."""


class EvaluationStoppedError(Exception):
    """The caller has given up waiting for the verdict."""


class _TooManyContentsError(Exception):
    """The contents of the message would take too much memory."""


class _StopCheck:
    """Raises EvaluationStoppedError if `stopped` returns true, and OutOfTimeError after `until_s`.

    The views of a message call this and not the evaluation: a reference back to the evaluation
    would be a circle, which keeps the content in memory for a while.
    """

    def __init__(self) -> None:
        self.stopped: Callable[[], bool] = lambda: False
        self.until_s = math.inf  # for the rules in progress

    def __call__(self) -> None:
        if self.stopped():
            raise EvaluationStoppedError
        if _clock.real_s() > self.until_s:
            raise OutOfTimeError


class Evaluation:
    """One evaluation of sets of rules, in their order."""

    def __init__(self, scopes: Sequence[RuleScope], message: ExaminedMessage) -> None:
        self._scopes = iter(scopes)
        self._is_for_thread = len(scopes) > SCOPES_ON_LOOP_MAX
        self._scope = scopes[0]  # of the rules in progress
        self._message = message
        self._check_stopped = _StopCheck()
        # of each content, for the rules in progress
        self._views = [MessageView(message, message.content, {}, between_parts=self._check_stopped)]
        self._archives = MessageArchives(self._check_stopped)
        self._open = 0  # recipients that the rules in progress have neither decided nor stopped
        self._live = (1 << len(message.recipients)) - 1  # recipients for further sets of rules
        self._having = [self._live]  # for each view, the recipients that get its content
        self._changed: dict[int, int] = {}  # by recipient: a content other than the first
        self._octets = 0  # an upper bound for the contents that rules of tenants have made
        self._known_contents: dict[ParsedContent, int] = {}  # once there are several
        self._in_thread = False
        self._carried_out = 0  # rules and actions
        self._owners: dict[int, str] = {}  # the tenants of recipients whose rules have run
        self._tenants: list[str] = []  # whose rules have run
        self._deferrals: list[Deferral] = []  # of recipients' tenants, for their copies only
        # by the place of a recipient
        self._decided: dict[int, RecipientVerdict] = {}
        self._holds: dict[int, Hold] = {}
        self._next_hops: dict[int, str] = {}
        self._junk: dict[int, Hold] = {}
        self._deferral: Deferral | None = None
        self._sender = ""
        self._charges: list[tuple[RateCharge, int]] = []  # each with the matched recipients
        self._additions: list[AddedRecipient] = []
        self._mails: list[RuleMail] = []
        self._hits: list[RuleHit] = []
        self._enter_next()

    def _enter_next(self) -> bool:
        """Begin the next set of rules that has a recipient; return False if there is none."""
        for scope in self._scopes:
            recipients = self._live if scope.is_whole else self._live & _bits(scope.places)
            if recipients:
                self._enter(scope, recipients)
                return True
        return False

    def _enter(self, scope: RuleScope, recipients: int) -> None:
        self._scope, self._open = scope, recipients
        if scope.tenant:
            self._tenants.append(scope.tenant)
        if not scope.is_whole:
            self._owners |= dict.fromkeys(scope.places, scope.tenant)
        self._known: dict[int, int] = {}  # the recipients that a condition matches, by its number
        self._next = 0  # the place of the first plan that was not applied
        if isinstance(scope.rules, Deferral):
            self._defer(scope.rules)
            return
        self._index = scope.rules.index
        self._candidates = bytearray()
        # the places of those views whose contents the rules see
        self._seen = [at for at, having in enumerate(self._having) if having & recipients]
        for at in self._seen:
            view = self._views[at] = self._view(self._views[at].content, like=self._views[at])
            self._note_candidates(view)

    def _note_candidates(self, view: MessageView) -> None:
        candidates = self._index.candidates(view)
        for place, flag in enumerate(self._candidates):
            candidates[place] |= flag
        self._candidates = candidates

    def run(
        self,
        *,
        in_thread: bool,
        stopped: Callable[[], bool] = lambda: False,
        time_s: float = math.inf,
    ) -> bool:
        """Apply the rules that are left; return False if the next one needs a thread.

        `stopped` is called before each rule, and between the parts of the message. The rules of all
        recipients' tenants together get three quarters of `time_s`, and each tenant's set half of
        what then remains of them.
        Raises EvaluationStoppedError, TooManyPartsError, OSError.
        """
        self._in_thread, self._check_stopped.stopped = in_thread, stopped
        if not in_thread and self._is_for_thread:
            return False
        self._ends_s = _clock.real_s() + 0.75 * time_s
        self._limit_time()
        while True:
            while self._open and (place := self._candidates.find(1, self._next)) >= 0:
                if stopped():
                    raise EvaluationStoppedError
                try:
                    self.apply(self._index.plans[place])
                except _ThreadNeededError:
                    return False
                self._next = place + 1
            if not self._enter_next():
                return True
            self._limit_time()

    def _limit_time(self) -> None:
        now_s = _clock.real_s()
        left_s = (self._ends_s - now_s) / 2 if self._is_shared else math.inf
        self._check_stopped.until_s = now_s + left_s

    def apply(self, plan: RulePlan) -> None:
        """Apply the rule to the recipients that it matches. Raises what its conditions raise."""
        rule = plan.rule
        try:
            if matched := self.matched(plan):
                self._carry_out(rule, matched)
        except (_ThreadNeededError, EvaluationStoppedError):
            raise
        except Exception as error:
            # a rule that changes nothing may not stop mail either
            if rule.mode is not RuleMode.AUDIT and rule.on_error is not OnError.IGNORE:
                if not self._is_shared:
                    if isinstance(error, UndecidedError):
                        error.rule = rule.name
                    raise
                self._fail(rule, error)
            self._hits.append(RuleHit(rule.name, str(rule.mode), SKIPPED, (), error=repr(error)))

    @property
    def _is_shared(self) -> bool:
        """Whether there are recipients that the rules in progress may not affect."""
        is_all = len(self._scope.places) == len(self._message.recipients)
        return not (self._scope.is_whole or is_all)

    def _fail(self, rule: Rule, error: Exception) -> None:
        """Reject or hold the copies for the tenant whose rule cannot be applied."""
        if isinstance(error, TooManyPartsError):
            recipients = self._live & _bits(self._scope.places)
            self._close(
                rule,
                places_of(recipients),
                action=VerdictAction.REJECT,
                status=TOO_MANY_PARTS_STATUS,
                text=TOO_MANY_PARTS,
            )
        else:
            self._defer(Deferral("4.7.1", NOT_APPLIED, rule.name))

    def _defer(self, deferral: Deferral) -> None:
        """Defer the message, or only the copies for the tenant. Later rules do not see them."""
        if self._is_shared:
            self._deferrals.append(deferral)
        else:
            self._deferral, self._live = deferral, 0
        self._open = 0

    def matched(self, plan: RulePlan) -> int:
        """Return the open recipients that the rule matches."""
        matched = self._open
        for number in plan.on_recipient:
            matched &= self._matching(number)
        for number in plan.exempt_recipients:
            matched &= ~self._matching(number)
        if not matched:
            return 0
        for at in self._seen:
            if concerned := matched & self._having[at]:
                matched &= ~concerned
                matched |= self._matches_message(plan, self._views[at], concerned)
        return matched

    def verdict(self) -> Verdict:
        """Return the verdict, with only the contents that a recipient gets, and the original."""
        recipients, additions = [*map(RecipientVerdict, self._message.recipients)], self._additions
        changes = (self._decided, self._holds, self._next_hops, self._junk, self._owners)
        if len(self._views) > 1 or any(changes):  # nearly never
            recipients = [
                self._decided.get(place) or self._delivered(place, recipient)
                for place, recipient in enumerate(self._message.recipients)
            ]
        used = sorted(
            {0}
            | {recipient.content for recipient in recipients}
            | {addition.content for addition in additions}
        )
        if len(used) < len(self._views):
            new = {old: new for new, old in enumerate(used)}
            recipients = [
                structs.replace(recipient, content=new[recipient.content])
                for recipient in recipients
            ]
            additions = [
                structs.replace(addition, content=new[addition.content]) for addition in additions
            ]
        contents = tuple(self._views[old].content for old in used)
        verdict = Verdict(
            tuple(recipients),
            tuple(additions),
            contents,
            tuple(self._hits),
            deferred=self._deferral,
            sender=self._sender,
            charges=tuple(self._due(recipients)) if self._charges else (),
            mails=tuple(mails_about(recipients, self._mails)) if self._mails else (),
            tenants=tuple(self._tenants),
        )
        return verdict.deferred_for(*self._deferrals) if self._deferrals else verdict

    def _matches_message(self, plan: RulePlan, view: MessageView, recipients: int) -> int:
        """Return the recipients, if the rule matches their content; of `all` and `any` tables on
        recipients, only those that match.
        """
        for number in plan.quick:  # faster than a generator
            if not self._holds_in(view, number):
                return 0
        for number in plan.quick_exempt:
            if self._holds_in(view, number):
                return 0
        for nested in plan.nested:
            concerned = nested.among(recipients, partial(self._holds_in, view), self._matching)
            recipients &= ~concerned if nested.exempts else concerned
            if not recipients:
                return 0
        matches = all(self._holds_in(view, number) for number in plan.deep) and not any(
            self._holds_in(view, number) for number in plan.deep_exempt
        )
        return recipients if matches else 0

    def _holds_in(self, view: MessageView, number: int) -> bool:
        """Return whether a condition matches a content. Equal conditions are evaluated once."""
        known = view.known.get(number)
        if known is None:
            condition = self._index.message_conditions[number]
            if not self._in_thread and condition.needs_thread(view):
                raise _ThreadNeededError
            known = view.known[number] = condition.matches(view)
        return known

    def _matching(self, number: int) -> int:
        """Return the recipients that a condition matches. Edits do not change the result."""
        known = self._known.get(number)
        if known is None:
            condition, known = self._index.recipient_conditions[number], 0
            view = self._views[self._seen[0]]
            for place in self._scope.places:
                if condition.matches_recipient(view, self._message.recipients[place]):
                    known |= 1 << place
            self._known[number] = known
        return known

    def _carry_out(self, rule: Rule, matched: int) -> None:
        """Carry out the actions for the recipients that the rule matched."""
        self._carried_out += 1 + len(rule.actions)
        if not self._in_thread and self._carried_out > ACTIONS_ON_LOOP_MAX:
            raise _ThreadNeededError  # before anything has changed
        places = list(places_of(matched))
        addresses = tuple([self._message.recipients[place] for place in places])
        content = self._content_of(places[0])
        because = rule.found_in(self._views[content], addresses[0])
        if rule.mode is not RuleMode.AUDIT:
            because += self._edit(rule, matched)
            if any(isinstance(action, SetSenderAction) for action in rule.actions):
                because += self._set_sender(rule)
            if places := [place for place in places if self._open >> place & 1]:
                self._mark(rule, places)
                self._add(rule, places)
                self._decide(rule, places)
            if rule.stop:
                self._open &= ~matched
                if not self._scope.tenant:
                    self._live &= ~matched
        self._hits.append(RuleHit(rule.name, str(rule.mode), rule.outcome, addresses, because))

    def _edit(self, rule: Rule, matched: int) -> tuple[Finding, ...]:
        """Edit the content for the matched recipients, or reject it for them.

        Return what the rule could not do.
        """
        edits = [
            action
            for action in rule.actions
            if isinstance(action, HeaderEdit | DisclaimerAction)
            and not isinstance(action, SetSenderAction)
        ]
        return self._edit_with(rule, edits, matched) if edits else ()

    def _set_sender(self, rule: Rule) -> tuple[Finding, ...]:
        """Replace the sender of the message, for all recipients that are not decided."""
        if not self._scope.is_whole:
            return (Finding("set_sender", "the sender is none of the tenant's"),)
        edits = [action for action in rule.actions if isinstance(action, SetSenderAction)]
        self._sender = edits[-1].address
        return self._edit_with(rule, edits, self._open)

    def _edit_with(
        self, rule: Rule, edits: Sequence[HeaderEdit | DisclaimerAction], matched: int
    ) -> tuple[Finding, ...]:
        if not self._in_thread and any(isinstance(edit, DisclaimerAction) for edit in edits):
            raise _ThreadNeededError  # before anything has changed
        self._check_stopped()
        results = [
            (old, having & matched, edited(self._views[old].content, edits, self._scope.message))
            for old in self._seen
            if (having := self._having[old]) & matched
        ]
        if self._is_shared:
            self._check_room([new.content for *_, new in results])
        for old, concerned, new in results:
            if new.refusal:
                self._close(
                    rule,
                    places_of(concerned),
                    action=VerdictAction.REJECT,
                    status=NO_DISCLAIMER_STATUS,
                    text=new.refusal,
                )
            elif new.content is not self._views[old].content:
                at = self._content(new.content)
                self._having[old] &= ~concerned
                self._having[at] |= concerned
                self._changed |= dict.fromkeys(places_of(concerned), at)
        return tuple(dict.fromkeys(note for *_, new in results for note in new.notes))

    def _check_room(self, more: Sequence[ParsedContent]) -> None:
        """Count the octets of new contents. Raises _TooManyContentsError.

        Beyond the limit, only the contents that a recipient still gets are counted again.
        """
        self._octets += sum(content.octets_in_memory for content in more)
        if self._octets > CONTENTS_OCTETS_MAX:
            made = zip(self._views[1:], self._having[1:], strict=True)
            used = [view.content for view, having in made if having]
            self._octets = sum(content.octets_in_memory for content in (*used, *more))
            if self._octets > CONTENTS_OCTETS_MAX:
                raise _TooManyContentsError

    def _content_of(self, place: int) -> int:
        """Return the index of a recipient's content."""
        return self._changed.get(place, 0)

    def _content(self, content: ParsedContent) -> int:
        """Return the index of a content; equal contents have one index."""
        known = self._known_contents = self._known_contents or {self._views[0].content: 0}
        at = known.setdefault(content, len(self._views))
        if at not in self._seen:
            if at == len(self._views):
                self._views.append(self._view(content))
                self._having.append(0)
            else:
                self._views[at] = self._view(content, like=self._views[at])
            self._seen.append(at)
            self._note_candidates(self._views[at])
        return at

    def _view(self, content: ParsedContent, like: MessageView | None = None) -> MessageView:
        return MessageView(
            self._scope.message,
            content,
            self._index.pattern_sets,
            between_parts=self._check_stopped,
            archives=self._archives,
            like=like,
        )

    def _mark(self, rule: Rule, places: list[int]) -> None:
        """Record the holds, next hops, mails and charges of the rule for its recipients."""
        for action in rule.actions:
            match action:
                case HoldAction():
                    hold = action.of_rule(rule.name)
                    for place in places:
                        self._holds.setdefault(place, hold)
                case NextHopAction(next_hop):
                    self._next_hops |= dict.fromkeys(places, next_hop)
                case JournalAction(addresses) | NotifyAction(addresses):
                    matched = tuple([self._message.recipients[place] for place in places])
                    text = action.text if isinstance(action, NotifyAction) else ""
                    self._mails += [
                        RuleMail(address, rule.name, matched, text) for address in addresses
                    ]
                case RateLimitAction() if key := action.key(self._scope.message):
                    charge = action.charge(rule.name, key, len(places))
                    self._charges.append((charge, sum(1 << place for place in places)))

    def _add(self, rule: Rule, places: list[int]) -> None:
        """Add copies, with the content after this rule; later rules do not see them.

        There is one copy for each tenant whose rules may have changed the content.
        """
        actions = [action for action in rule.actions if isinstance(action, _ADDING)]
        by_owner: dict[str, list[int]] = {}
        for place in places if actions else ():
            by_owner.setdefault(self._owners.get(place, ""), []).append(place)
        for owner, own_places in by_owner.items():
            content = self._content_of(own_places[0])
            own_addresses = [self._message.recipients[place] for place in own_places]
            local = [address for address in own_addresses if address in self._message.local]
            held = [hold for place in own_places if (hold := self._holds.get(place))]
            for action in actions:
                is_instead = isinstance(action, RedirectAction | QuarantineAction)
                hold = held[0] if held and is_instead else None
                self._additions += [
                    AddedRecipient(
                        address,
                        rule.name,
                        content,
                        hold,
                        is_quarantine=isinstance(action, QuarantineAction),
                        tenant=owner,
                        acted_for=(local or own_addresses)[0],
                    )
                    for address in action.addresses
                ]

    def _decide(self, rule: Rule, places: list[int]) -> None:
        """Decide about the matched recipients, if the last action of the rule is final."""
        match rule.actions[-1] if rule.actions else None:
            case DeferAction(status, text):
                self._defer(Deferral(status, text, rule.name))
            case RejectAction(status, text):
                self._close(rule, places, action=VerdictAction.REJECT, status=status, text=text)
            case DiscardAction():
                self._close(rule, places, action=VerdictAction.DISCARD)
            case QuarantineAction(()) as action:
                self._put_into_junk(action.hold_of(rule.name), places)
            case RedirectAction(addresses) | QuarantineAction(addresses):
                others = [
                    place
                    for place in places  # a redirect to the recipient itself changes nothing
                    if own_mailbox(self._message.recipients[place])
                    not in map(own_mailbox, addresses)
                ]
                is_redirect = isinstance(rule.actions[-1], RedirectAction)
                fate = VerdictAction.REDIRECT if is_redirect else VerdictAction.QUARANTINE
                self._close(rule, others, action=fate, successors=addresses)

    def _put_into_junk(self, hold: Hold, places: Sequence[int]) -> None:
        """Put copies into Junk Email; hold those that go to another host.

        If the rule is a tenant's, later sets of rules still see these recipients.
        """
        for place in places:
            self._junk[place] = hold
            if self._message.recipients[place] not in self._message.local:
                self._holds[place] = hold
        self._open &= ~_bits(places)
        if not self._scope.tenant:
            self._live &= ~_bits(places)

    def _close(
        self,
        rule: Rule,
        places: Iterable[int],
        *,
        action: VerdictAction,
        status: str = "",
        text: str = "",
        successors: tuple[str, ...] = (),
    ) -> None:
        for place in places:
            self._decided[place] = RecipientVerdict(
                self._message.recipients[place],
                action,
                rule=rule.name,
                status=status,
                text=text,
                successors=successors,
                hold=self._holds.get(place) if successors else None,
                tenant=self._owners.get(place, ""),
            )
            self._open &= ~(1 << place)
            self._live &= ~(1 << place)

    def _delivered(self, place: int, recipient: str) -> RecipientVerdict:
        """Return the verdict about a recipient that no rule decided."""
        hold, junk = self._holds.get(place), self._junk.get(place)
        by = junk or hold
        return RecipientVerdict(
            recipient,
            content=self._content_of(place),
            rule=by.rule if by else "",
            hold=hold,
            next_hop=self._next_hops.get(place, ""),
            junk=junk,
            in_junk=junk is not None,
            tenant=self._owners.get(place, ""),
        )

    def _due(self, recipients: Sequence[RecipientVerdict]) -> Iterator[RateCharge]:
        """Yield the charges; recipients that were rejected do not count."""
        rejected = sum(
            1 << place
            for place, recipient in enumerate(recipients)
            if recipient.action is VerdictAction.REJECT
        )
        for charge, matched in self._charges:
            if count := (matched & ~rejected).bit_count():
                yield structs.replace(charge, recipients=count)


def _bits(places: Iterable[int]) -> int:
    return sum(1 << place for place in places)


def places_of(recipients: int) -> Iterator[int]:
    """Yield the places of the bits that are set."""
    while recipients:
        lowest = recipients & -recipients
        yield lowest.bit_length() - 1
        recipients ^= lowest
