"""The journey of a message as a page shows it: seven steps, and the recipients.

Pure functions of a journey (docs/names.md) and its entries in the queue. All seven steps are shown
in order, each with the lines of `relay trace`; a step without events says so. Texts contain what
hosts and senders wrote; templates escape them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from jinja2.filters import do_filesizeformat
from msgspec import Struct

from relay.base.clock import time_us_of
from relay.base.message.authentication_results import check_words
from relay.base.message.lifecycle import AT_REST, FINAL, RecipientState
from relay.base.phrases import counted
from relay.front_door.pages.axis import Axis, axis_of
from relay.front_door.pages.charts import duration_text
from relay.front_door.pages.content import one_line
from relay.store.journeys import details
from relay.store.journeys.document import Journey, JourneyStep, Recipient, details_in
from relay.store.journeys.events import Step
from relay.store.journeys.wording import REASONS, WAITS_FOR, client_line, describe, hop_words

_TO = "\N{EN DASH}"  # between the first and the last number
_EVENTS_MAX = 50  # events of one step: the newest
RECIPIENTS_MAX = 200
# Step 5 comes before step 4: transport replies when the message is routed and stored.
_IN_TIME = (1, 2, 3, 5, 4, 6, 7)
D = TypeVar("D", bound=details.Detail)
_NAMES = {int(step): step.title for step in Step}
_OF_ONE_ATTEMPT = ("attempt", "durations", "retry")  # details that differ between equal attempts
_WAITING = ("queued", "deferred", "held")
_BAD = frozenset({"failed", "expired", "cancelled"})
_ENDED_WELL = frozenset(FINAL) - _BAD
_THERE = _ENDED_WELL | {RecipientState.CAPTURED}
FACT_CHARACTERS_MAX = 20
_Events = Mapping[int, Sequence[JourneyStep]]
_is_reply = re.compile(r"[2-5]\d\d(?: [245]\.\d{1,3}\.\d{1,3})?")


class StepState(StrEnum):
    """The progress of a step."""

    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting"
    FAILED = "failed"
    SKIPPED = "skipped"
    NO_EVIDENCE = "no evidence"


class StepEvent(Struct, frozen=True):
    """One event of a step, or the last of several attempts with the same reply.

    `since` is the time since the previous event, in words; `count` is the number of events.
    """

    at: str
    since: str
    lines: tuple[str, ...]  # of `relay trace`
    links: tuple[tuple[str, str], ...] = ()  # paths below messages/, and their texts
    next_at: str = ""  # the time of the next attempt
    count: int = 1


class ShownStep(Struct, frozen=True):
    """One of the seven steps."""

    number: int  # 1 to 7
    name: str  # its title
    state: StepState  # its progress
    text: str  # a sentence about the state, "" without
    events: tuple[StepEvent, ...] = ()  # the newest ones
    left_out: int = 0  # the number of older events
    began: str = ""  # the time of its first event if no step of the message began earlier
    fact: str = ""  # what matters of it: at most 20 characters, with the time since then
    until: str = ""  # the time for which it waits

    @property
    def sentence(self) -> str:
        """The step in a sentence."""
        return self.text or next((line for event in self.events for line in event.lines), "")

    @property
    def at(self) -> str:
        """The time of the step's first shown event, "" without events."""
        return self.events[0].at if self.events else ""

    @property
    def since(self) -> str:
        """The time since the event before the step."""
        return self.events[0].since if self.events else ""


class ShownRecipient(Struct, frozen=True):
    """A recipient, and what follows on the meaning of its state: the next host."""

    facts: Recipient
    text: str


class JourneyView(Struct, frozen=True):
    """A journey as a page shows it."""

    journey: Journey  # what is recorded
    subject: str  # on one line, "" if it is not known
    client: str  # the client that submitted it
    checks: str  # of its sender
    steps: tuple[ShownStep, ...]  # 1 to 7
    recipients: tuple[ShownRecipient, ...]  # the first ones
    others: str  # how many recipients that are not listed have each state
    axis: Axis | None  # its attempts as a picture
    began: str  # the time of the first event, "" without


def journey_view(
    journey: Journey,
    entries: Sequence[Mapping[str, Any]] = (),
) -> JourneyView:
    """Return the view of a journey; `entries` are the message's entries in the queue, as in `queue
    list`.
    """
    recipients = journey.shown_recipients
    ordered = sorted(recipients, key=lambda recipient: _importance(recipient.state))
    listed, rest = ordered[:RECIPIENTS_MAX], ordered[RECIPIENTS_MAX:]
    by_state = Counter(recipient.state for recipient in rest)
    return JourneyView(
        journey=journey,
        subject=one_line(journey.subject),
        client=client_line(journey.known_client),
        checks=check_words(journey.checks) if journey.checks else "",
        steps=tuple(_steps(journey, entries)),
        recipients=tuple(map(_recipient, listed)),
        others=", ".join(f"{number} {state}" for state, number in by_state.items()),
        axis=axis_of(journey, ordered),
        began=min((step.at for step in journey.steps), default=""),
    )


# -- steps


def _steps(journey: Journey, entries: Sequence[Mapping[str, Any]]) -> Iterator[ShownStep]:
    events: dict[int, list[JourneyStep]] = {number: [] for number in _NAMES}
    for step in journey.steps:
        events[step.step].append(step)
    since = _times_between(journey.steps)
    first, has_begun = min((step.at for step in journey.steps), default=""), False
    is_claimed = any(entry.get("claimed") for entry in entries)
    for number, name in _NAMES.items():
        state, text = _state_of_step(number, journey, events, is_claimed=is_claimed)
        step_events = [_event(run, since, journey) for run in _runs(events[number])]
        last_events = tuple(step_events[-_EVENTS_MAX:])
        left_out = sum(event.count for event in step_events[:-_EVENTS_MAX])
        fact, until = _fact(number, journey, events, state=state)
        began = min((step.at for step in events[number]), default="")
        if began and (began != first or has_begun):
            took = 0 if until else round((time_us_of(began) - time_us_of(first)) / 1e6, 3)
            fact, began = _joined("" if until else f"+{duration_text(took)}", fact), ""
        has_begun = has_begun or bool(began)
        yield ShownStep(
            number, name, state, text, last_events, left_out, began=began, fact=fact, until=until
        )


def _joined(*parts: str) -> str:
    """Return the parts of a fact, the last alone if there is no room for all."""
    text = " \N{MIDDLE DOT} ".join(filter(None, parts))
    return text if len(text) <= FACT_CHARACTERS_MAX else parts[-1]


def _fact(number: int, journey: Journey, events: _Events, *, state: StepState) -> tuple[str, str]:
    """Return what matters of a step in few characters, without addresses and names of rules; and
    the time for which it waits.
    """
    match number:
        case Step.CREATED if state == StepState.SKIPPED:
            return "by the relay" if journey.is_report else "by SMTP", ""
        case Step.CONVERTED if state == StepState.WAITING:
            return "", _first(details.NotifiedDetail, events).deferred_until
        case Step.CONVERTED if state == StepState.FAILED:
            made = _first(details.ConvertedDetail, events)
            return _code(made.failed or made.unknown), ""
        case Step.CONVERTED if size := _first(details.ConvertedDetail, events).size:
            return do_filesizeformat(size).replace("ytes", ""), ""
        case Step.POLICY_AND_ROUTING if state == StepState.FAILED:
            return "refused", ""
        case Step.POLICY_AND_ROUTING:
            hops = _first(details.RoutedDetail, events).next_hops
            named = sorted(hop for hop in hops if hop in ("capture", "local"))
            if not named:
                return counted(len(hops), "host") if hops else "", ""
            is_all = len(named) == len(hops)
            return " and ".join(named) if is_all else counted(len(hops), "next hop"), ""
        case Step.DELIVERY if journey.id and state != StepState.SKIPPED:
            return _delivery_fact(journey, state)
        case Step.REPORT if events[7]:
            kind = type(events[7][-1].read())
            noun = {details.ClaimDetail: "claim", details.ComplaintDetail: "complaint"}
            return counted(len(events[7]), noun.get(kind, "report")), ""
        case Step.REPORT if state == StepState.SKIPPED:
            is_due = any(to.state in ("failed", "expired") for to in journey.recipients)
            return "none sent" if is_due else "none due", ""
    return "", ""


def _code(reply: str) -> str:
    """Return the code and the status of a reply, "failed" without them."""
    code = _is_reply.match(reply)
    return code[0] if code else "failed"


def _delivery_fact(journey: Journey, state: StepState) -> tuple[str, str]:
    recipients = journey.recipients
    count = f"{sum(to.state in _THERE for to in recipients)} of {len(recipients)}"
    if state == StepState.WAITING:
        waits = [to for to in recipients if to.state in _WAITING]
        until = min((to.next_attempt or "" for to in waits), default="")
        return "held" if all(to.state == "held" for to in waits) else count, until
    if state == StepState.FAILED:
        reply = next((to.reply for to in recipients if to.state in _BAD), "")
        return _joined(_code(reply), count), ""
    return count, ""


def _event(run: Sequence[JourneyStep], since: Mapping[int, str], journey: Journey) -> StepEvent:
    """Return an event as shown, or a run of equal attempts."""
    last, next_at = run[-1], ""
    lines = [*describe(last.step, last.detail)]
    if isinstance(tried := last.read(), details.AttemptDetail):
        next_at = tried.retry
        if len(run) > 1:
            numbers = f"{run[0].detail.get('attempt', '?')}{_TO}{tried.attempt}"
            lines = [f"Attempts {numbers}: the same reply."]
        elif tried.node:
            lines.insert(0, f"[{tried.node}]")
    links = tuple(_links(last, journey))
    return StepEvent(last.at, since[id(last)], tuple(lines), links, next_at, len(run))


def _links(step: JourneyStep, journey: Journey) -> Iterator[tuple[str, str]]:
    """Yield the paths below messages/ of what an event is about, each with the link's text."""
    match step.read():
        case details.CreatedDetail():
            made = details_in(journey.steps, details.ConvertedDetail)
            if not any(converted.draft == "MIME" for converted in made):
                yield f"{journey.key}/properties", "the properties (Graph JSON)"
        case details.ConvertedDetail() as made if made.draft:
            yield f"{journey.key}/source", "the MIME"
        case details.RoutedDetail() as routed:
            if routed.about:
                yield routed.about, f"message {routed.about}"
            yield from ((mail.queue_id, f"message {mail.queue_id}") for mail in routed.mails)
        case details.ReportDetail(report_id=report) | details.ClaimDetail(received=report) if (
            report
        ):
            yield report, f"report {report}"


def _runs(events: Sequence[JourneyStep]) -> Iterator[Sequence[JourneyStep]]:
    """Yield lists of events: one event, or a run of equal attempts for one entry.

    An operation ends a run.
    """
    runs: list[list[JourneyStep]] = []
    last: dict[int, list[JourneyStep]] = {}  # by entry
    for event in events:
        tried = event.read()
        if not isinstance(tried, details.AttemptDetail) or not tried.attempt:
            last.clear()
            runs.append([event])
            continue
        run = last.get(tried.entry)
        if run is None or _likeness(run[-1]) != _likeness(event):
            run = last[tried.entry] = []
            runs.append(run)
        run.append(event)
    for run in runs:
        yield run[:1]
        if run[1:]:
            yield run[1:]


def _likeness(step: JourneyStep) -> Mapping[str, Any]:
    """Return a key that equal attempts share."""
    return {name: value for name, value in step.detail.items() if name not in _OF_ONE_ATTEMPT}


def _times_between(steps: Sequence[JourneyStep]) -> dict[int, str]:
    """Return the time from the previous event to each event, in words."""
    since: dict[int, str] = {}
    before_us: int | None = None
    for step in sorted(steps, key=lambda step: step.at):
        at_us = time_us_of(step.at)
        since[id(step)] = (
            "" if before_us is None else f"+{duration_text((at_us - before_us) / 1e6)}"
        )
        before_us = at_us
    return since


def _state_of_step(
    number: int, journey: Journey, events: _Events, *, is_claimed: bool
) -> tuple[StepState, str]:
    """Return the state of a step and a sentence about it."""
    if number == Step.DELIVERY and journey.id:
        return _delivery(journey, events, is_claimed=is_claimed)
    if number == Step.REPORT:
        return _report(journey, events)
    if events[number]:
        return _with_events(number, journey, events)
    if not journey.submission_id:
        reasons = _SKIPPED_BY_A_REPORT if journey.is_report else _SKIPPED_BY_SMTP
        return StepState.SKIPPED, reasons.get(number, "Nothing is recorded.")
    place = _IN_TIME.index(number)
    if any(events[later] for later in _IN_TIME[place + 1 : -1]):
        return StepState.NO_EVIDENCE, _NO_EVIDENCE
    if ended := _end_before_transport(events):
        at, text = ended
        if number == at:
            return StepState.FAILED, text
        return StepState.SKIPPED, f"Not reached: the message ended at step {at}."
    before = max((number for number in _IN_TIME[:place] if events[number]), default=0)
    if place and not events[_IN_TIME[place - 1]]:
        return StepState.WAITING, "Not reached yet."
    if journey.state == RecipientState.HELD:
        return StepState.WAITING, f"It {REASONS['held']}."
    if number == Step.CONVERTED and _first(details.NotifiedDetail, events).deferred_until:
        return StepState.WAITING, "A scheduled send: it waits for its time."
    return StepState.RUNNING, f"Next: {WAITS_FOR[before]}." if before else "Nothing is recorded."


_NO_EVIDENCE = (
    "No evidence: later steps are recorded, so this one happened. Its record was removed with old "
    "history, or lost with the power."
)
_SKIPPED_BY_SMTP = {
    1: "No draft: the message came by SMTP.",
    2: "No notification: the message came by SMTP.",
    3: "Nothing to build: the client sent a whole mail.",
}

_SKIPPED_BY_A_REPORT = {
    1: "No draft: the relay wrote this report.",
    2: "No notification: the relay wrote this report.",
    3: "Nothing to build: the relay wrote a whole mail.",
    4: "No Sent Items: no client sent it.",
}


def _first(kind: type[D], events: _Events) -> D:
    return next(details_in(events[kind.step], kind), kind())


def _with_events(number: int, journey: Journey, events: _Events) -> tuple[StepState, str]:
    match events[number][0].read():
        case details.NotifiedDetail() as detail if detail.cancelled and not events[3]:
            return StepState.FAILED, "Cancelled before it was sent; the draft stays."
        case details.ConvertedDetail() as detail if reply := detail.failed or detail.unknown:
            return StepState.FAILED, f"It could not be sent: {reply}"
        case details.RoutedDetail() as detail if detail.refused and not detail.next_hops:
            count = len(journey.recipients)
            whom = "the recipient" if count == 1 else f"all {count} recipients"
            return StepState.FAILED, f"Refused for {whom}."
    return StepState.DONE, ""


def _end_before_transport(events: _Events) -> tuple[int, str] | None:
    """Return the step at which a submission ended without transport, and how; else None."""
    if _first(details.NotifiedDetail, events).cancelled and not events[3]:
        return 2, "Cancelled."
    if not events[7] or events[5] or events[4]:
        return None
    reply = _first(details.ReportDetail, events).reply
    is_made = _first(details.ConvertedDetail, events).size
    return (4, f"Transport refused the message: {reply}") if is_made else (3, reply)


def _delivery(journey: Journey, events: _Events, *, is_claimed: bool) -> tuple[StepState, str]:
    """Return the state of step 6, which follows from the states of the recipients."""
    states = Counter(recipient.state for recipient in journey.recipients)
    text = ", ".join(f"{number} {state}" for state, number in states.items())
    text = f"{counted(states.total(), 'recipient')}: {text}."
    if is_claimed:
        return StepState.RUNNING, text
    if any(states[name] for name in _WAITING):
        held = {to.reason or "" for to in journey.recipients if to.state == "held"}
        why = [f"Held by {reason}." for reason in sorted(filter(None, held))]
        return StepState.WAITING, " ".join([text, *why])
    attempts = details_in(events[6], details.AttemptDetail)
    tried = {recipient.address for attempt in attempts for recipient in attempt.recipients}
    if not events[6]:
        if not _first(details.RoutedDetail, events).next_hops and events[5]:
            if states["delivered"]:  # to a quarantine address
                return StepState.DONE, text
            return StepState.SKIPPED, "No recipient was left to deliver to after step 5."
        return StepState.NO_EVIDENCE, f"{text} {_NO_EVIDENCE}"
    of_step = [recipient.state for recipient in journey.recipients if recipient.address in tried]
    is_bad = any(state in _BAD for state in of_step) or states["cancelled"]
    return (StepState.FAILED if is_bad else StepState.DONE), text


def _report(journey: Journey, events: _Events) -> tuple[StepState, str]:
    if events[7]:
        reports = [*details_in(events[7], details.ReportDetail)]
        if not reports:
            return StepState.DONE, "This relay sent no report. What others claim is not verified."
        if [report.kind for report in reports] == ["dropped"] * len(events[7]):
            return StepState.FAILED, "A report could not be delivered, and was dropped."
        return StepState.DONE, ""
    states = {recipient.state for recipient in journey.recipients}
    if not states or not states <= AT_REST:
        return StepState.WAITING, "The sender gets a report if a recipient fails."
    if not states & {"failed", "expired"}:
        return StepState.SKIPPED, "No report was due: no recipient failed."
    if not journey.sender:
        return StepState.SKIPPED, "No report: the message has no reverse-path to send one to."
    return StepState.SKIPPED, "No report was sent: the sender asked for none (NOTIFY)."


# -- recipients


def _importance(state: str) -> int:
    """Return the sort key of a recipient: failed recipients first, then waiting ones."""
    if state in _BAD:
        return 0
    return 2 if state in _ENDED_WELL else 1


def _recipient(recipient: Recipient) -> ShownRecipient:
    text = ""
    if recipient.state == "relayed" and recipient.attempts and recipient.attempts[-1].host:
        text = f": {recipient.attempts[-1].host}"
    if (hop := recipient.next_hop) and recipient.state in ("queued", "deferred"):
        text = f"; goes to {hop_words(hop)}"
    return ShownRecipient(recipient, text)
