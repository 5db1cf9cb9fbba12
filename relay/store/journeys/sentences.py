"""What became of a message: the answer, a sentence for each state and reply of its recipients.

`relay trace` and the page of a message begin with these sentences. Everything here is a pure
function of a journey and the time. The texts contain what hosts and senders wrote, as those of
wording.py: the caller makes them safe for a terminal or a page.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from msgspec import Struct, structs

from relay.base.clock import rfc3339, time_us_of
from relay.base.message.lifecycle import RecipientState, by_importance
from relay.base.phrases import counted, moment, time_left
from relay.store.journeys.details import (
    COPY,
    POSTMASTER,
    ClaimDetail,
    NotifiedDetail,
    ReportDetail,
    RoutedDetail,
)
from relay.store.journeys.document import (
    Attempt,
    Journey,
    JourneyStep,
    Recipient,
    SenderReport,
    details_in,
)
from relay.store.journeys.events import Step

# Of a report that is captured, as other mail for its recipient.
REPORT_WAITS = "the sender's mailbox is outside, the report waits here"
_SENTENCES_MAX = 3
_NAMED_MAX = 2
_DEAD_LETTERS = (
    "the dead-letter mailbox, which nobody reads (STATE/dead-letter): set reports.copy_to, or a"
    " route"
)
_REPORTED_MAX = 100  # addresses in an event of step 7
_REPORTS_MAX = 3
_OF_NO_FAILURE = ("delayed", "held", "delivered", "relayed", "expanded")  # kinds of reports
_OF_NO_RECIPIENT = ("dead-letter", POSTMASTER, COPY, "reply")  # kinds of reports
_CLAUSE_CHARACTERS_MAX = 160
_SMTP_REPLY = re.compile(r"[2-5][0-9][0-9](?: [245]\.[0-9]{1,3}\.[0-9]{1,3})?(?= |$)", re.ASCII)
_EXPIRED = "expired"  # an outcome without an attempt
_BY_RULES = {"failed": "reject", "discarded": "discard", "redirected": "redirect"}


class SentenceTime(Struct, frozen=True):
    """A time in a sentence, RFC 3339. If it `counts_down`, the time until then is added."""

    at: str
    counts_down: bool = False

    def text(self, now_us: int) -> str:
        """Return "20:23 UTC, in 11 min"."""
        at = moment(self.at, rfc3339(now_us))
        left_s = (time_us_of(self.at) - now_us) / 1e6
        return f"{at}, {time_left(left_s)}" if self.counts_down else at


Part = str | SentenceTime


class Sentence(Struct, frozen=True):
    """A sentence about recipients in one state. `state` is "" for the sentence about all others;
    `count` is their number, `report` the id of the report on their failure, "" for none.
    """

    state: str
    parts: tuple[Part, ...]
    count: int = 0
    report: str = ""

    def text(self, now_us: int) -> str:
        """Return the sentence as it reads at this time."""
        return "".join(part if isinstance(part, str) else part.text(now_us) for part in self.parts)


# -- reasons


def reasons_of(
    recipients: Sequence[Recipient], steps: Sequence[JourneyStep]
) -> Iterator[str | None]:
    """Yield why each recipient is in its state, None if the state says everything."""
    rules = _deciding_rules(steps)
    for recipient in recipients:
        yield recipient.reason or _reason(
            recipient, rules.get((recipient.address, recipient.state), "")
        )


def _deciding_rules(steps: Sequence[JourneyStep]) -> dict[tuple[str, str], str]:
    """Return the rules that ended a recipient, by address and state.

    For quarantined recipients, the text says where the message is.
    """
    rules: dict[tuple[str, str], str] = {}
    for routed in details_in(steps, RoutedDetail):
        for text, names in routed.quarantined.items():
            rules |= {(address, "delivered"): text for address in names}
        for hit in routed.rules:
            done = hit.outcome.split(",") if hit.mode == "enforce" else ()
            for state, action in _BY_RULES.items():
                if action in done:
                    rules |= {(address, state): hit.rule for address in hit.recipients}
    return rules


def _reason(recipient: Recipient, rule: str) -> str | None:
    """Return the reason. `rule` is the rule that ended the recipient, "" if none did."""
    match recipient.state:
        case "delivered" if rule:
            return f"quarantined by {rule}"
        case "discarded" if rule:
            return f'rule "{rule}" discarded it'
        case "discarded":
            return _clause(recipient.reply) or None
        case "redirected" if rule:
            return f'rule "{rule}" redirected it'
        case "failed" if rule and not recipient.attempts:
            code = _SMTP_REPLY.match(recipient.reply)
            return f'rule "{rule}" refused it' + (f" ({code[0]})" if code else "")
        case "deferred" | "failed" | "expired":
            tried = _tries(recipient)
            if tried and tried[-1].outcome != "captured":
                return _said(tried[-1])
            return _own(recipient.reply) or None
        case "cancelled":
            return recipient.reply.removeprefix("cancelled: ") or None
    return None


def _tries(recipient: Recipient) -> list[Attempt]:
    return [tried for tried in recipient.attempts if tried.outcome != _EXPIRED]


def _said(tried: Attempt) -> str:
    if not tried.host:
        return _own(tried.reply)
    verb = " replied" if _SMTP_REPLY.match(tried.reply) else ":"
    entry = f" (entry {tried.provider})" if tried.provider else ""
    return f"{tried.host}{verb} {_clause(tried.reply)}{entry}"


def _own(reply: str) -> str:
    """Return the text of a reply that this relay wrote."""
    return f"this relay replied {_clause(reply)}" if _SMTP_REPLY.match(reply) else _clause(reply)


def _clause(text: str) -> str:
    """Return a text without its full stop, shortened if it is long."""
    if len(text) > _CLAUSE_CHARACTERS_MAX:
        return f"{text[:_CLAUSE_CHARACTERS_MAX]}…"
    return text.rstrip().removesuffix(".")


# -- sentences


def answer(
    journey: Journey, *, now_us: int, reports: Mapping[str, Journey] | None = None
) -> list[Sentence]:
    """Return at most three sentences, the most important first, and how many recipients are left.
    One about a failure is the first, and what waits follows.

    `reports` are the known journeys of the message's reports, by their ids.
    """
    groups: dict[tuple[str, str], list[Recipient]] = {}
    for recipient in (*journey.shown_recipients, *_copies_in(_STOPPED, journey)):
        groups.setdefault((recipient.state, _likeness(recipient)), []).append(recipient)
    ordered = sorted(groups.values(), key=lambda group: by_importance(group[0].state))
    worst = next((group for group in ordered if group[0].state in _FAILED), None)
    ordered.sort(key=lambda group: group is not worst)
    writer = _Writer(journey, now_us, reports or {})
    sentences = [writer.sentence(group) for group in ordered[:_SENTENCES_MAX]]
    if rest := [recipient for group in ordered[_SENTENCES_MAX:] for recipient in group]:
        states = Counter(recipient.state for recipient in rest)
        others = ", ".join(f"{number} {state}" for state, number in states.items())
        sentences.append(Sentence("", (f"And {len(rest)} more: {others}.",)))
    return sentences


def needed_reports(journey: Journey) -> Sequence[str]:
    """Return the ids of the reports whose journeys answer() needs."""
    failed = [recipient.state in _FAILED for recipient in journey.recipients]
    return journey.reports[-_REPORTS_MAX:] if any(failed) or _copies_in(_FAILED, journey) else ()


def _copies_in(states: Collection[str], journey: Journey) -> list[Recipient]:
    """Return the recipients in these states that a rule added, if the reader may know them."""
    return [copy for copy in journey.added or () if copy.state in states]


def _likeness(recipient: Recipient) -> str:
    """Return what the recipients of one sentence have in common, apart from their state."""
    claim = _claim(recipient).replace(recipient.address, "")
    if recipient.state == "relayed":  # each transaction has another reply
        return (recipient.attempts[-1].host if recipient.attempts else "") + claim
    return (recipient.reason or "").replace(recipient.address, "") + claim


def _claim(recipient: Recipient) -> str:
    """Return what a host claims of a recipient, as a sentence; "" if it claims nothing."""
    report = recipient.reported
    return f" {_clause(claim_words(report))}." if report and report.source else ""


class _Writer(Struct, frozen=True):
    """Writes the sentence of a group of recipients with one state and reason."""

    journey: Journey
    now_us: int
    reports: Mapping[str, Journey]

    def sentence(self, group: Sequence[Recipient]) -> Sentence:
        recipient, state = group[0], group[0].state
        claim = filter(None, [_claim(recipient)])
        if state == "delivered":
            whom = self._whom(group) or recipient.address
            where = [f" It was {recipient.reason}."] if recipient.reason else []
            parts = (*self._at(f"Delivered to {whom}", recipient), *where, *claim)
            return Sentence(state, parts, len(group))
        whom = self._whom(group)
        head = f"{state.capitalize()} for {whom}" if whom else state.capitalize()
        parts = (*self._parts(head, recipient, is_one=len(group) == 1), *claim)
        reports = self._reports(recipient) if state in _FAILED else ()
        known = (detail.report_id for detail in reports if detail.report_id in self.reports)
        return Sentence(state, parts, len(group), next(known, ""))

    def _whom(self, group: Sequence[Recipient]) -> str:
        """Return which recipients these are, "" for the only recipient."""
        count, total = len(group), len(self.journey.recipients)
        if total == 1 and not group[0].added_by:
            return ""
        if count == total > 1 and not group[0].added_by:
            return f"all {total} recipients"
        names = [recipient.address for recipient in group[:_NAMED_MAX]]
        if count <= _NAMED_MAX:
            return " and ".join(names)
        return f"{count} of {total} recipients ({', '.join(names)}, …)"

    def _parts(self, head: str, recipient: Recipient, *, is_one: bool) -> Iterator[Part]:
        match recipient.state:
            case "queued" | "deferred":
                yield f"{head}{_because(recipient)}"
                yield from _times(recipient)
                yield from self._next(recipient)
            case "held":
                yield from self._held(head, recipient)
            case "captured":
                yield from self._captured(head, recipient, is_one=is_one)
            case "scheduled":
                yield f"{head}: it is sent at the time that the sender chose, "
                yield SentenceTime(recipient.next_attempt or "", counts_down=True)
                yield "."
            case "converting":
                is_made = any(step.step == Step.CONVERTED for step in self.journey.steps)
                done = "submitted it" if is_made else "built the mail"
                waits = self._waits()
                why = f"; this relay replied {_clause(waits)}" if waits else ""
                yield f"{head}: pickup has not {done} yet, and goes on by itself{why}."
            case "relayed":
                tried = recipient.attempts[-1] if recipient.attempts else None
                host = tried.host if tried and tried.host else "the next host"
                yield from self._at(f"{head}: {host} accepted it", recipient)
            case "failed" | "expired":
                yield from self._failed(head, recipient)
            case "removed":
                yield "History removed: it was accepted; what became of it is not kept any more."
            case "cancelled" if self.journey.id:
                yield f"{head}{_because(recipient, ' by ')}."
            case _:
                yield f"{head}{_successors(recipient)}{_because(recipient)}."

    def _captured(self, head: str, recipient: Recipient, *, is_one: bool) -> Iterator[Part]:
        place, where, removed = "relay", "it is kept in the queue", "It is removed"
        if any(tried.outcome == "captured" for tried in recipient.attempts):
            whose = recipient.address if is_one else "each of them"
            place, where = "machine", f"a copy is in the Inbox of {whose}"
            removed = "The copy is removed with the message" if is_one else "All are removed"
        stays = REPORT_WAITS if self.journey.is_report else f"it has not left this {place}"
        yield f"{head}: {stays}; {where}."
        if recipient.expires:
            yield f" {removed} "
            yield SentenceTime(recipient.expires)
            yield "."

    def _waits(self) -> str:
        """Return the reply because of which pickup waits, "" for none."""
        return next(
            (notified.waits for notified in details_in(self.journey.steps, NotifiedDetail)), ""
        )

    @staticmethod
    def _at(text: str, recipient: Recipient) -> Iterator[Part]:
        """Yield a text and the time of the last attempt."""
        if recipient.attempts:
            yield f"{text} at "
            yield SentenceTime(recipient.attempts[-1].at)
            yield "."
        else:
            yield f"{text}."

    def _held(self, head: str, recipient: Recipient) -> Iterator[Part]:
        yield f"{head}{_because(recipient, ' by ')}"
        if recipient.next_attempt:
            yield ". It is released "
            yield SentenceTime(
                recipient.next_attempt, counts_down=self._is_ahead(recipient.next_attempt)
            )
        else:
            yield "; it stays until an operator releases it"
        yield from _end(recipient, "; expires ")

    def _is_ahead(self, at: str) -> bool:
        return time_us_of(at) > self.now_us

    def _next(self, recipient: Recipient) -> Iterator[Part]:
        number = "next" if _tries(recipient) else "first"
        if recipient.next_attempt and self._is_ahead(recipient.next_attempt):
            yield f". {number.capitalize()} attempt "
            yield SentenceTime(recipient.next_attempt, counts_down=True)
        else:
            yield f". The {number} attempt is due now"
        yield from _end(recipient, "; gives up ")

    def _failed(self, head: str, recipient: Recipient) -> Iterator[Part]:
        yield f"{head}{_because(recipient)}"
        yield from _times(recipient)
        if recipient.attempts and recipient.attempts[-1].outcome == _EXPIRED:
            yield "; given up at "
            yield SentenceTime(recipient.attempts[-1].at)
        yield f". {self._report(recipient)}"

    def _reports(self, recipient: Recipient) -> Iterator[ReportDetail]:
        """Yield the reports on a recipient's failure, the newest first."""
        for detail in reversed([*details_in(self.journey.steps, ReportDetail)]):
            about = detail.recipients
            if not detail.to or detail.kind in _OF_NO_FAILURE:
                continue
            if not about or recipient.address in about or len(about) == _REPORTED_MAX:
                yield detail

    def _report(self, recipient: Recipient) -> str:
        """Return where the report on a recipient is, and the operator's copy."""
        copies = list[str]()
        for detail in self._reports(recipient):
            where = self._whereabouts(detail)
            if detail.kind != COPY:
                return " ".join([where, *copies])
            copies.append(where)
        return "No report was sent."

    def _whereabouts(self, detail: ReportDetail) -> str:
        to, report = detail.to, self.reports.get(detail.report_id)
        what = "copy" if detail.kind == COPY else "report"
        by = f" by Graph as {detail.by_graph_as}" if detail.by_graph_as else ""
        # pickup writes its report into the mailbox itself
        if not detail.report_id or (report and report.state in ("delivered", "captured")):
            place = _DEAD_LETTERS if to == POSTMASTER else f"the Inbox of {to}"
            return f"The {what} is in {place}."
        if report is None:
            return f"A {what} went to {to}{by}."
        if report.state == "relayed":
            return f"The {what} was sent to {to}{by}."
        verb = "has" if report.state in _FAILED else "is"
        return f"The {what} to {to} {verb} {report.state}."


def _because(recipient: Recipient, before: str = ": ") -> str:
    return f"{before}{recipient.reason}" if recipient.reason else ""


def _times(recipient: Recipient) -> Iterator[Part]:
    """Yield how often the last reply was received, and since when."""
    tried = _tries(recipient)
    first = len(tried)
    while first and tried[first - 1].reply == tried[-1].reply:
        first -= 1
    if (number := len(tried) - first) > 1:
        yield f" ({number} times since "
        yield SentenceTime(tried[first].at)
        yield ")"


def _end(recipient: Recipient, before: str) -> Iterator[Part]:
    if recipient.expires:
        yield before
        yield SentenceTime(recipient.expires)
    yield "."


def _successors(recipient: Recipient) -> str:
    names = recipient.successors or ()
    if recipient.state == "expanded":
        return f" to {counted(len(names), 'address')}"
    return f" to {', '.join(names)}" if names else ""


# -- what reports say of recipients: Relay's own, and what those from outside claim. These prove
# nothing, so their words always have the name of the host before them.

_FAILED = (RecipientState.FAILED, RecipientState.EXPIRED)
_STOPPED = (*_FAILED, RecipientState.DEFERRED, RecipientState.HELD)
_CLAIMS = {
    "failure": "it was not delivered",
    "delayed": "it is not delivered yet",
    "held": "it is held",
    "delivered": "it was delivered",
    "relayed": "it was passed on to a host that sends no reports",
    "expanded": "it was delivered to a list, and sent to its members",
    "read": "it was displayed",
    "notread": "it was deleted unread",
}


def with_reports(
    recipients: Sequence[Recipient], steps: Sequence[JourneyStep]
) -> tuple[Recipient, ...]:
    """Return the recipients, each with what the last report to the sender says of it.

    A report from outside only claims: it is used if Relay has sent none. The report on a failed
    conversion is about all recipients. An event names a limited number of them.
    """
    last: dict[str, tuple[str, str]] = {}  # kind and time of the last report, by address
    reports: dict[str, SenderReport] = {}
    for step in steps:
        if step.step != Step.REPORT:
            continue
        match step.read():
            case ClaimDetail() as claim:
                reports |= dict.fromkeys(claim.recipients, remote_report(claim, step.at))
            case ReportDetail() as detail if detail.to and detail.kind not in _OF_NO_RECIPIENT:
                named = detail.recipients or [recipient.address for recipient in recipients]
                last |= dict.fromkeys(named, (detail.kind, step.at))
    for recipient in recipients:
        if recipient.address in last:
            kind, at = last[recipient.address]
            host = recipient.attempts[-1].host if recipient.attempts else ""
            reports[recipient.address] = SenderReport(
                kind, recipient.status, recipient.reply, host, at
            )
    return tuple(
        structs.replace(recipient, reported=reports[recipient.address])
        if recipient.address in reports
        else recipient
        for recipient in recipients
    )


def remote_report(claim: ClaimDetail, at: str = "") -> SenderReport:
    """Return what a report from outside says of its recipient."""
    return SenderReport(
        claim.kind, claim.status, claim.reply, claim.host, at, by="remote", source=claim.source
    )


def are_failures_reported(recipients: Sequence[Recipient]) -> bool:
    """Return whether recipients failed, and the sender got a report on each of them.

    All recipients must have been attempted.
    """
    reported = {
        recipient.address
        for recipient in recipients
        if recipient.reported and recipient.reported.kind in ("failure", "unknown")
    }
    failed = {recipient.address for recipient in recipients if recipient.state in _FAILED}
    return bool(reported) and failed <= reported and not has_new(recipients)


def has_new(recipients: Sequence[Recipient]) -> bool:
    """Return whether a recipient waits for its first attempt, or for an attempt that is due."""
    return any(recipient.state == RecipientState.QUEUED for recipient in recipients)


def claim_words(report: SenderReport, address: str = "") -> str:
    """Return "HOST claims that it was not delivered: 550 5.1.1 no such user".

    If the recipient's address is given, it is part of the text.
    """
    assert report.source is not None
    what = _CLAIMS.get(report.kind, f"its state is {report.kind}")
    said = report.reply if report.status in report.reply else f"{report.status} {report.reply}"
    text = f"{report.source.name} claims that {what}{f' (to {address})' if address else ''}"
    return f"{text}: {said.strip().removesuffix('.')}" if said.strip() else text
