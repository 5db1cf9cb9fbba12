"""One recorded event of a journey as sentences and facts for a page.

Pure functions. docs/names.md describes the details of events; if a detail is missing, because an
older version recorded the event, its sentence is left out.
"""

from collections.abc import Iterator
from itertools import islice

from msgspec import UNSET, Struct

from relay.base.phrases import counted, named
from relay.store.journeys import details
from relay.store.journeys.document import (
    Attempt,
    Durations,
    Journey,
    JourneyStep,
    attempts_in,
    details_in,
)
from relay.store.journeys.sentences import claim_words, remote_report
from relay.store.journeys.wording import client_line, describe

_RECIPIENTS_MAX = 20  # of one event


class StepFact(Struct, frozen=True):
    """A fact: name and value.

    `state` is a recipient's state, `message` the id of a linked message, `view` a view of this
    message's content. `time` is shown after the value.
    """

    name: str
    value: str
    state: str = ""
    message: str = ""
    view: str = ""
    time: str = ""


class StepEvidence(Struct, frozen=True):
    """One event as shown. `time` is in the future, such as the time of the next attempt."""

    text: str
    facts: tuple[StepFact, ...] = ()
    lines: tuple[str, ...] = ()  # the lines of `relay trace`
    time: str = ""
    time_text: str = ""


def evidence_of(step: JourneyStep, journey: Journey) -> StepEvidence:
    """Return the evidence of an event of a journey's `steps`."""
    match step.read():
        case details.NotifiedDetail() as detail:
            return _notified(detail)
        case details.ConvertedDetail() as detail:
            return _converted(detail)
        case details.AcceptedDetail() as detail:
            return _accepted(detail)
        case details.RoutedDetail() as detail:
            return _routed(detail, step, journey)
        case details.AttemptDetail() as detail:
            return _delivery(detail)
        case details.CommandDetail() as detail:
            rest = {name: value for name, value in step.detail.items() if name != "until"}
            text = f"Queue command: {'; '.join(describe(6, rest))}."
            return StepEvidence(text, time=detail.until, time_text="until")
        case details.ReportDetail() as detail:
            return _reported(detail)
        case details.ClaimDetail() as detail:
            return _claimed(detail)
    author = journey.known_client.account or journey.sender or "A client"
    return StepEvidence(f"{author} created the draft.", tuple(_created(journey)))


def _created(journey: Journey) -> Iterator[StepFact]:
    if client := client_line(journey.known_client):
        yield StepFact("Client", client.removeprefix("from "))
    yield StepFact("Graph id", str(journey.graph_id))
    if journey.message_id:
        yield StepFact("Message-ID", journey.message_id)
    if not any(
        converted.draft == "MIME"
        for converted in details_in(journey.steps, details.ConvertedDetail)
    ):
        yield StepFact("Content", "the properties (Graph JSON)", view="properties")


def _notified(detail: details.NotifiedDetail) -> StepEvidence:
    if detail.cancelled:
        reason = f": {detail.reason}" if detail.reason else ""
        return StepEvidence(f"The scheduled send was cancelled{reason}.")
    if detail.sent_now:
        who = detail.who or "an operator"
        return StepEvidence(
            f"A scheduled send: {who} had it sent now.", time=detail.sent_now, time_text="at"
        )
    if detail.deferred_until:
        return StepEvidence(
            "Submitted, to be sent at the time that the sender chose.",
            time=detail.deferred_until,
            time_text="sent",
        )
    waits = (StepFact("Waited after", detail.waits),) if detail.waits else ()
    return StepEvidence("The sender submitted the draft, and pickup was notified.", waits)


def _converted(detail: details.ConvertedDetail) -> StepEvidence:
    if reply := detail.failed or detail.unknown:
        return StepEvidence("The conversion or its submission failed.", (StepFact("Reply", reply),))
    if not detail.draft:
        return StepEvidence("Converted to MIME.")
    recipients = counted(detail.recipients, "recipient")
    kind = "MIME" if detail.draft == "MIME" else "properties (Graph JSON)"
    text = (
        f"The draft was {kind} in a file of {detail.draft_size} bytes; the message is MIME of "
        f"{detail.size} bytes, for {recipients}."
    )
    facts = [StepFact("Change", change) for change in detail.changes]
    if not facts:
        facts = [StepFact("Change", "none: the MIME is sent as it is")]
    facts += [StepFact("Repair", defect) for defect in detail.defects]
    return StepEvidence(text, (*facts, StepFact("Content", "the MIME", view="source")))


_FOLDERS = {"sentitems": "Sent Items", "drafts": "Drafts"}


def _accepted(detail: details.AcceptedDetail) -> StepEvidence:
    if detail.folder is UNSET:
        kept = "the client got this reply when step 5 was stored"
    elif detail.folder:
        kept = f"the draft became the copy in {_FOLDERS.get(detail.folder, detail.folder)}"
    else:
        kept = "the sender asked for no copy, and the draft was removed"
    facts = [StepFact("Reply", f"250 2.0.0 Ok: queued as {detail.queue_id or '?'}")]
    if detail.folder_gone:
        facts.append(StepFact("Folder", f"{detail.folder_gone} did not exist any more"))
    return StepEvidence(f"Transport took over the message; {kept}.", tuple(facts))


# -- step 5


def hop_words(next_hop: str) -> str:
    """Return a next hop in words."""
    if next_hop == "local":
        return "a mailbox here"
    if next_hop.startswith("mx:"):
        return f"the mail hosts (MX) of {next_hop[3:]}"
    if next_hop == "capture":
        return "capture: kept here"
    if next_hop == "hold":
        return "hold: until an operator releases it"
    return next_hop


def _routed(detail: details.RoutedDetail, step: JourneyStep, journey: Journey) -> StepEvidence:
    facts = []
    if about := detail.about:
        facts.append(StepFact("Report about", about, message=about))
    elif not journey.submission_id and (client := client_line(journey.known_client)):
        facts.append(StepFact("Client", client.removeprefix("from ")))
    facts += [StepFact("Sent too", mail.queue_id, message=mail.queue_id) for mail in detail.mails]
    if used := detail.used:
        facts.append(StepFact("Rules in force", f"{used.hash}, loaded", time=used.loaded))
    matched = sum(not hit.error for hit in detail.rules)
    hits = f"{counted(matched, 'rule')} matched" if matched else "No rule matched"
    text = f"{hits}; the message is stored in the queue."
    if about:
        text = "The report was routed; rules do not apply to reports."
    return StepEvidence(text, tuple(facts), tuple(describe(5, step.detail)))


# -- steps 6 and 7


def _delivery(detail: details.AttemptDetail) -> StepEvidence:
    facts: list[StepFact] = []
    if detail.expired:
        text = "The time to deliver was over."
    else:
        text = f"Attempt {detail.attempt or '?'}, to {hop_words(detail.next_hop)}."
        facts += _host(detail)
    people = detail.recipients
    facts += [
        StepFact(recipient.address, _outcome_text(recipient), state=recipient.outcome)
        for recipient in people[:_RECIPIENTS_MAX]
    ]
    if len(people) > _RECIPIENTS_MAX:
        facts.append(StepFact("Recipients", f"{len(people) - _RECIPIENTS_MAX} more"))
    if detail.held:
        facts.append(StepFact("Held", detail.held, state="held"))
    retry = detail.retry
    return StepEvidence(text, tuple(facts), time=retry, time_text="next attempt" if retry else "")


def _outcome_text(recipient: details.AttemptedRecipient) -> str:
    text, copy = recipient.reply or recipient.outcome, recipient.graph_id
    return f"{text}; its Graph id is {copy}" if copy else text


def _host(detail: details.AttemptDetail) -> Iterator[StepFact]:
    if detail.node:
        yield StepFact("Node", detail.node)
    if detail.mx:
        more = f" and {detail.mx_more} more" if detail.mx_more else ""
        yield StepFact("MX", "; ".join(detail.mx) + more)
    for tried in detail.hosts:
        yield StepFact("Tried", tried)
    host, address = detail.host or "", detail.address
    if not host and not address:
        return
    yield StepFact("Host", f"{host} [{address}]" if host and address else host or address)
    for _, attempt in islice(attempts_in(detail, ""), 1):  # the attempts were made together
        yield StepFact("TLS", tls_words(attempt, detail.cipher))
        if attempt.encoded:
            yield StepFact("Content", f"encoded again: {attempt.encoded}")
        if attempt.durations is not None:
            yield StepFact("Took", _durations(attempt.durations))


def tls_words(attempt: Attempt, cipher: str = "") -> str:
    """Return TLS and policy of an attempt, such as "TLSv1.3, name verified, MTA-STS enforce"."""
    verified = _VERIFIED.get(attempt.verified, attempt.verified)
    done = [attempt.tls, cipher, verified] if attempt.tls else ["no TLS"]
    policy = attempt.policy
    for recorded, words in _POLICIES.items():
        policy = policy.replace(recorded, words)
    return ", ".join(filter(None, (*done, policy)))


def _durations(durations: Durations) -> str:
    """Return the durations of an attempt, such as "12.5 ms: DNS 0.2, connection 0.5, TLS 3.1"."""
    parts = (("DNS", durations.dns), ("connection", durations.connect), ("TLS", durations.tls))
    known = ", ".join(f"{name} {took_ms:g}" for name, took_ms in parts if took_ms)
    return f"{durations.total:g} ms" + (f": {known}" if known else "")


_VERIFIED = {
    "none": "certificate not verified",
    "chain": "certificate for another name",
    "name": "name verified",
    "dane": "TLSA record verified",
}
# what a policy begins with or contains; the first match counts
_POLICIES = {
    "mta-sts: verify": "MTA-STS enforce",
    "mta-sts": "MTA-STS",
    "dane: dane": "DANE",
    "requiretls: verify": "REQUIRETLS",
    "requiretls: dane": "REQUIRETLS",
    "; by dane": "; by DANE",
}
_KINDS = {
    "failure": "A report on failed delivery",
    "unknown": "A report that the outcome is not known",
    "delayed": "A report that the delivery is late",
    "held": "A notice that the message is held",
    "delivered": "A report on delivery",
    "relayed": "A report on delivery to the next host",
    "expanded": "A report on delivery to a list",
    "read": "A read receipt",
    "notread": "A notification that the message was deleted unread",
    "reply": "An automatic reply",
    "dead-letter": "A dead letter",
    "postmaster": "A notice on mail of a stranger",
}


def _reported(detail: details.ReportDetail) -> StepEvidence:
    names, kind = named(detail.recipients, most=_RECIPIENTS_MAX), detail.kind
    if detail.left_out:
        return StepEvidence(f"No report ({kind}) about {names}: {detail.left_out}.")
    if kind == "dropped":
        return StepEvidence(f"The report to {names} was dropped: it could not be delivered.")
    facts = [StepFact("About", names)] if names else []
    if detail.reply:
        facts.append(StepFact("It says", detail.reply))
    if report_id := detail.report_id:
        facts.append(StepFact("Report", report_id, message=report_id))
    text = f"{_KINDS.get(kind, 'A report')} went to {detail.to or '?'}."
    return StepEvidence(text, tuple(facts), time=detail.until, time_text="gives up")


def _claimed(detail: details.ClaimDetail) -> StepEvidence:
    names, received = named(detail.recipients, most=_RECIPIENTS_MAX), detail.received
    facts = [StepFact("About", names), StepFact("Report", received, message=received)]
    if detail.host:
        facts.append(StepFact("Host", detail.host))
    if detail.more:
        facts.append(
            StepFact("More", f"{counted(detail.more, 'further report')} on this recipient")
        )
    return StepEvidence(f"{claim_words(remote_report(detail))}.", tuple(facts))
