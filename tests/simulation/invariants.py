"""The invariants of docs/design.md 7, each a function of what is left of a world.

Pure but for haunt(); a message says which invariant, whose message, what is. See docs/design.md 7;
RFC 3464 (what a report names).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from msgspec.structs import replace

from relay.base.message.lifecycle import FINAL, TRANSITIONS, RecipientState
from relay.base.message.outcome import Evidence as Words
from relay.base.message.outcome import Relayed
from relay.base.message.srs import Srs, SrsError
from relay.base.message.status import SUPPRESSED
from relay.delivery.site_limits import parse_rate
from relay.store.journeys.events import Step
from relay.store.spool.shared.hold_counters import HELD_BY_RULES
from relay.store.spool.types import Claim, ClaimResult
from tests.simulation import scenario
from tests.simulation.clock import BEGINNING_US
from tests.simulation.ledger import Ledger
from tests.simulation.neighbours import MARK, MARKED
from tests.simulation.rows import Message, Recipient, Rows
from tests.simulation.senders import content as content_of
from tests.simulation.sites import NO_SUCH_USER, TOKEN, Site, Taken, name_of

_UNANSWERED = "it is not known whether the message arrived"
_ATTEMPT_S_MAX = 1500.0  # three hosts, each answering as late as it may
_LAST_S_MAX = 2 * _ATTEMPT_S_MAX  # the last one may wait until another frees the only connection
_REPORTED = re.compile(
    rb"^Final-Recipient: [^;]*; *(\S+)\r\nAction: *(\S+)", re.MULTILINE | re.IGNORECASE
)
_FINAL_DELIVERY = re.compile(rb"Return-Path: <[^\r\n]*>\r\nDelivered-To: ([^\r\n]*)\r\n")
_TRACE = re.compile(
    rb"Received: [^;]*\bid ([0-9a-z]{16})\b[^;]*;\r\n\t[^\r\n]*\r\n(?:Date: [^\r\n]*\r\n)?"
)
_FORWARDED = re.compile(rb"Delivered-To: ([^\r\n]*)\r\n")
_MESSAGE_ID = re.compile(rb"^Message-ID: *(\S+)", re.MULTILINE | re.IGNORECASE)
_UNREAD = b"Subject: (the original message could not be read)"


@dataclass(frozen=True)
class Evidence:
    """All there is to judge by."""

    plan: scenario.Scenario
    ledger: Ledger
    rows: Rows
    sites: Mapping[str, list[Site]]

    def copies(self) -> Iterator[Taken]:
        for sites in self.sites.values():
            for site in sites:
                yield from site.taken

    @cached_property
    def words(self) -> Mapping[str, str]:
        """The words of each token's letter, by which rules match."""
        return {one.token: one.letter.words for one in self.ledger.tries}

    def copies_by_recipient(self) -> Counter[tuple[str, str]]:
        """How many there are for a queue id and an address."""
        names = self.ledger.names
        return Counter((names.get(one.name, one.name), one.address) for one in self.copies())


def violations(evidence: Evidence) -> list[str]:
    """Everything that is wrong."""
    found: list[str] = list(evidence.rows.violations)
    for check in (
        answered_is_kept,
        aliases_reach_all,
        senders_lead_back,
        everything_ended,
        ends_are_true,
        contents_are_right,
        failures_are_justified,
        dead_addresses_get_nothing,
        no_second_delivery,
        reports_are_made,
        no_backscatter,
        expiry_in_time,
        cancelled_as_told,
        holds_end_once,
        reports_are_told_once,
        keys_are_kept,
        events_tell_all,
        nothing_left_over,
    ):
        found += [f"invariant {line}" for line in check(evidence)]
    return found


def answered_is_kept(evidence: Evidence) -> Iterator[str]:
    """1: after 250 the message is there, with every recipient that was taken."""
    by_token = Counter(message.token for message in evidence.rows.messages.values())
    for one in evidence.ledger.tries:
        if one.code == 250:
            message = evidence.rows.messages.get(one.queue_id)
            if message is None:
                yield f"1: {one.token} was answered 250 as {one.queue_id} and is nowhere"
                continue
            there = {recipient.address for recipient in message.recipients}
            for address in one.recipients:
                if address not in there:
                    yield f"1: {one.token} lost its recipient {address}"
        elif one.code // 100 == 4 and evidence.ledger.was_in_doubt(one):
            continue
        elif one.code // 100 in (4, 5) and by_token[one.token]:
            yield f"1: {one.token} was answered {one.code}, and accepted"


def aliases_reach_all(evidence: Evidence) -> Iterator[str]:
    """1 and 2: each address that an alias leads to is one recipient, however often it is named."""
    for message in evidence.rows.messages.values():
        there = Counter(one.address.lower() for one in message.recipients if not one.added_by)
        for alias in message.recipients:
            is_alias = alias.address.partition("@")[0] in scenario.ALIASES
            for address in alias.successors if is_alias else ():
                if (count := there[address.lower()]) != 1:
                    where = f"{message.id} ({message.token}) by {alias.address}"
                    yield f"1: {where} has {count} recipients {address}"


def senders_lead_back(evidence: Evidence) -> Iterator[str]:
    """1: a copy has the sender of its message; from elsewhere, what an alias sends on, and what a rule
    may, has one that stands for it, until the message expires at least.
    """
    messages, names, srs = evidence.rows.messages, evidence.ledger.names, Srs(scenario.SRS_KEY)
    for copy in evidence.copies():
        message = messages.get(names.get(copy.name, copy.name))
        if message is None:
            continue
        sender, is_from_here = copy.reverse_path, message.reverse_path.endswith(f"@{scenario.HOME}")
        is_sent_on = _FORWARDED.match(copy.content) or sender != message.reverse_path
        if message.reverse_path and not is_from_here and is_sent_on:
            try:
                sender = srs.original(sender, now_us=message.expires_us)
            except SrsError as error:
                yield f"1: {message.id} ({message.token}) left with {sender}, which is {error}"
                continue
        if sender != message.reverse_path:
            yield f"1: {message.id} ({message.token}) left with the sender {copy.reverse_path}"


def everything_ended(evidence: Evidence) -> Iterator[str]:
    """1 and 6: nothing is without an end when all time is over; nothing is unaccounted for."""
    for message in evidence.rows.messages.values():
        for recipient in message.recipients:
            if recipient.state not in FINAL:
                yield f"6: {message.id} ({message.token}) to {recipient.address} is still {recipient.state}"
    counters = evidence.rows.counters
    messages = evidence.rows.messages.values()
    states = Counter(str(one.state) for message in messages for one in message.recipients)
    expected = {state: count for state, count in states.items() if state in FINAL}
    if states:
        expected["accepted"] = states.total()
    counters = dict(counters)
    if held := counters.pop(HELD_BY_RULES, 0):
        yield f"1: rules hold {held} entries, as is counted, and all mail has ended"
    if counters != expected:
        yield f"1: counted {dict(counters)}, there are {dict(states)}"


def ends_are_true(evidence: Evidence) -> Iterator[str]:
    """1: what is said to be somewhere is there."""
    at_sites = evidence.copies_by_recipient()
    at_home = Counter(unique for _, unique, _ in evidence.ledger.inboxes)
    for message in evidence.rows.messages.values():
        for recipient in message.recipients:
            where = f"{message.id} ({message.token}) to {recipient.address}"
            is_accepted = _is_accepted(recipient)
            if is_accepted and not at_sites[message.id, recipient.address]:
                yield f"1: {where} is {recipient.state}, and nobody has it"
            if (
                recipient.state is RecipientState.DELIVERED
                and not is_accepted
                and not at_home[f"{message.id}-{recipient.number}"]
            ):
                yield f"1: {where} is delivered, and in no mailbox"


def _is_accepted(recipient: Recipient) -> bool:
    """Whether a site has accepted the message for a recipient; by LMTP that is a delivery."""
    if recipient.state is RecipientState.DELIVERED:
        return recipient.address.endswith(f"@{scenario.BOXES}")
    return recipient.state is RecipientState.RELAYED


def contents_are_right(evidence: Evidence) -> Iterator[str]:
    """1: each copy has, octet for octet, the version of the content that is its recipient's."""
    messages = evidence.rows.messages
    letters = {one.token: one.letter for one in evidence.ledger.tries}
    copies = [(name_of(one.content), one.address, one.content) for one in evidence.copies()]
    for mailbox, unique, content in evidence.ledger.inboxes:
        place = _FINAL_DELIVERY.match(content)
        if place is None:
            yield f"1: {unique} in {mailbox} says not for whom it is"
            continue
        queue_id = unique.partition("-")[0]
        is_report = queue_id in messages and messages[queue_id].source == "report"
        copy = content[place.end() :]
        # a dead letter is another message than its content says
        copies.append((name_of(copy) if is_report else queue_id, place[1].decode(), copy))
    for name, address, content in copies:
        message = messages.get(evidence.ledger.names.get(name, name))
        if message is None or message.token not in letters:  # it is a report, or never accepted
            continue
        letter = letters[message.token]
        versions = _versions(message, letter, address)
        field = _FORWARDED.match(content)
        if field and field[1].decode() not in _aliases_to(message, address):
            yield f"1: {message.id} ({message.token}) came to {address} by {field[1]!r}"
        trace = _TRACE.match(content, field.end() if field else 0)
        if trace is None or trace[1].decode() != message.id:
            yield f"1: {message.id} ({message.token}) came to {address} without its Received"
        elif content[trace.end() :] not in versions:
            yield f"1: {message.id} ({message.token}) came to {address} with another content"


def _aliases_to(message: Message, address: str) -> Collection[str]:
    """The aliases that may have sent a message there: the named ones, and those in them."""
    if not any(address in one.successors for one in message.recipients):
        return ()
    return [f"{name}@{scenario.HOME}" for name, to in scenario.ALIASES.items() if address in to]


def _versions(message: Message, letter: scenario.Letter, address: str) -> tuple[bytes, ...]:
    """What a recipient may get; of a dead letter nobody knows whose version it is."""
    plain = content_of(letter, message.token)
    if letter.words != "version":
        return (plain,)
    head, _, body = plain.partition(b"\r\n\r\n")
    marked = head + b"\r\n" + MARK + b"\r\n" + body
    if address not in {one.address for one in message.recipients}:
        return (plain, marked)
    return (marked,) if address.startswith(MARKED) else (plain,)


def failures_are_justified(evidence: Evidence) -> Iterator[str]:
    """1: a recipient fails for a 5yz reply that a site gave, or for a final reason of the relay's."""
    for message in evidence.rows.messages.values():
        failures = _failures(message)
        for one in message.recipients:
            if one.state is not RecipientState.FAILED:
                continue
            if one.number in failures and failures[one.number][1].startswith(_UNANSWERED):
                reply = _UNANSWERED
                is_justified = in_doubt(message, one.number) >= evidence.plan.indeterminate_max
            elif one.number in failures:
                next_hop, reply = failures[one.number]
                is_justified = _refuses(evidence, message, one.address, next_hop, reply)
            else:
                reply = one.reply
                is_justified = not one.entry and _is_refused_here(evidence, message, one.address)
            if not is_justified:
                where = f"{message.id} ({message.token}) to {one.address}"
                yield f"1: {where} failed with {reply!r}, and nobody refused it for good"


def _failures(message: Message) -> dict[int, tuple[str, str]]:
    """The next hop and the reply of each attempt that failed, by the recipient's number."""
    return {
        one["number"]: (detail["next_hop"], one["reply"])
        for _, step, detail in message.events
        if step == Step.DELIVERY
        for one in detail.get("recipients", ())
        if one["outcome"] == "failed"
    }


def _refuses(evidence: Evidence, message: Message, address: str, next_hop: str, reply: str) -> bool:
    """Whether a host of the next hop gave this reply, or no host can ever be found for it."""
    domain = next_hop.removeprefix("mx:")
    if evidence.plan.unresolved.get(domain) in ("nxdomain", "nullmx"):
        return True
    return any(
        refusal.reply == reply
        and refusal.address in ("", address)
        and (not refusal.address or _is_sender(refusal.reverse_path, message))
        and evidence.ledger.names.get(refusal.name, refusal.name) in ("", message.id)
        for site in evidence.sites.get(scenario.SERVED_BY.get(domain, domain), ())
        for refusal in site.refusals
    )


def _is_sender(reverse_path: str, message: Message) -> bool:
    """Whether a copy of a message may have this sender: its own, or one that stands for it."""
    with suppress(SrsError):
        reverse_path = Srs(scenario.SRS_KEY).original(reverse_path, now_us=message.expires_us)
    return reverse_path == message.reverse_path


def _is_refused_here(evidence: Evidence, message: Message, address: str) -> bool:
    """Whether a rule, a route or the list of accounts refuses the address."""
    local_part, _, domain = address.partition("@")
    letter = next((one.letter for one in evidence.ledger.tries if one.token == message.token), None)
    if letter is not None and letter.words == "forbidden" and address.startswith(("u1", "bob@")):
        return True
    return _is_suppressed(message, address) or (
        domain == scenario.HOME and local_part not in scenario.PEOPLE
    )


def _is_suppressed(message: Message, address: str) -> bool:
    """Whether the list of dead addresses has failed it; dead_addresses_get_nothing() judges that."""
    return any(
        one.address == address and not one.entry and one.reply.startswith(SUPPRESSED)
        for one in message.recipients
    )


def dead_addresses_get_nothing(evidence: Evidence) -> Iterator[str]:
    """The list of dead addresses fails those of which a host has said so, and only those: all that is
    accepted after such a reply is recorded, until a delivery is.
    """
    if not evidence.plan.suppresses:
        return
    dead: set[str] = set()
    for _, message, step, detail in sorted(_sequence_of_events(evidence.rows)):
        if step == Step.POLICY_AND_ROUTING:
            held = {to for names in detail.get("held", {}).values() for to in names}
            for address in {one.address for one in message.recipients if not one.added_by} - held:
                is_leaving = address in detail["next_hops"].get(_own_hop(address), ())
                if is_leaving and address in dead:
                    yield f"1: {message.id} ({message.token}) left for {address}, which is dead"
                if _is_suppressed(message, address) and address not in dead:
                    yield f"1: {message.id} ({message.token}) to {address}: it is not dead"
        elif step == Step.DELIVERY:
            for one in detail.get("recipients", ()):
                if detail["next_hop"] != _own_hop(one["address"]):
                    continue
                if one["outcome"] == "relayed":
                    dead.discard(one["address"])
                if one["outcome"] == "failed" and one["reply"] == NO_SUCH_USER:
                    dead.add(one["address"])


def _own_hop(address: str) -> str:
    return f"mx:{address.partition('@')[2]}"


def _sequence_of_events(rows: Rows) -> list[tuple[int, Message, int, dict[str, Any]]]:
    """The events of all messages but reports, with their sequences."""
    return [
        (sequence, message, step, detail)
        for message in rows.messages.values()
        if message.source != "report"
        for sequence, step, detail in message.events
    ]


def no_second_delivery(evidence: Evidence) -> Iterator[str]:
    """2: at most one copy, and one more for each attempt that is known to be in doubt."""
    messages = evidence.rows.messages
    for (queue_id, address), count in evidence.copies_by_recipient().items():
        message = messages.get(queue_id)
        if message is None:
            yield f"2: {queue_id} was delivered to {address} and never accepted"
            continue
        mine = [one for one in message.recipients if one.address == address]
        accepted = sum(map(_is_accepted, mine))
        doubts = sum(in_doubt(message, one.number) for one in mine)
        if count > accepted + doubts:
            yield f"2: {queue_id} ({message.token}) to {address}: {count} copies, {doubts} doubts"
    for unique, count in Counter(unique for _, unique, _ in evidence.ledger.inboxes).items():
        if count > 1:
            yield f"2: {unique} is {count} times in its mailbox"


def in_doubt(message: Message, number: int) -> int:
    """How many attempts for a recipient are indeterminate, with the one after which it failed."""
    return sum(
        one["number"] == number
        and (one["outcome"] == "indeterminate" or one["reply"].startswith(_UNANSWERED))
        for _, step, detail in message.events
        if step == Step.DELIVERY
        for one in detail.get("recipients", ())
    )


def reports_are_made(evidence: Evidence) -> Iterator[str]:
    """1: who failed is reported once to the sender who may hear of it, and to nobody else; of
    strangers' mail the postmaster hears, or the trace says why not."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    causes = _causes(evidence)
    lost = set(_lost(evidence, causes))
    for queue_id, content in _reports(evidence):
        token = TOKEN.search(content.partition(b"\r\n\r\n")[2])
        name = _MESSAGE_ID.search(content)
        for address, action in _REPORTED.findall(content):
            if action != b"failed":
                continue
            # of a message that could not be read then, only its trace tells
            found_text = token[1].decode() if token else _cause(causes, queue_id)[0]
            found[found_text, address.decode()].add(name[1].decode() if name else "")
    expected: set[tuple[str, str]] = set()
    for message in evidence.rows.messages.values():
        if message.source == "report":
            continue
        noticed = {
            address
            for _, step, detail in message.events
            if step == Step.REPORT and (detail["kind"] == "postmaster" or "left_out" in detail)
            for address in detail["recipients"]
        }
        for one in message.recipients:
            wanted = not one.notify or "FAILURE" in one.notify
            wanted = bool(one.added_by) or (wanted and bool(message.reverse_path))
            if one.state is RecipientState.EXPIRED and is_captured(message, one):
                wanted = False  # an operator handles captured mail
            is_silent = starts_held(evidence, message, one) == "hush"
            if (
                one.state is RecipientState.EXPIRED
                and is_silent
                and one.entry not in freed(message)
            ):
                wanted = False
            if one.state in (RecipientState.FAILED, RecipientState.EXPIRED) and wanted:
                expected.add((message.token, one.address))
                if one.added_by or not message.trusted:
                    if one.address not in noticed:
                        yield f"1: {message.id} ({message.token}) to {one.address} is {one.state} in silence"
                    continue
                is_lost = (message.token, one.address) in lost
                reports = sorted(found[message.token, one.address])
                # a lost one may have been delivered by a process that died before it recorded
                if not 1 - is_lost <= len(reports) <= 1:
                    yield f"1: {message.id} ({message.token}) to {one.address} is {one.state}; reports: {reports}"
    for key, reports in found.items():
        if reports and key not in expected:
            yield f"5: nobody was to hear of {key}: {sorted(reports)}"


def is_captured(message: Message, recipient: Recipient) -> bool:
    """Whether it was captured to its end."""
    rerouted = any(
        detail.get("operation") == "reroute" and recipient.entry in detail["entries"]
        for _, _, detail in message.events
    )
    return recipient.address.endswith("@captured.test") and not rerouted


def _reports(evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    """What is in mailboxes, with its queue id."""
    names = evidence.ledger.names
    there = [(unique.partition("-")[0], content) for _, unique, content in evidence.ledger.inboxes]
    there += [
        (names.get(copy.name, copy.name), copy.content)
        for copy in evidence.copies()
        if not copy.reverse_path
    ]
    for queue_id, content in there:
        if b"\r\nContent-Type: multipart/report" in content.partition(b"\r\n\r\n")[0]:
            yield queue_id, content


_Causes = Mapping[str, tuple[Message, Collection[str]]]  # whose, and which of its recipients


def _causes(evidence: Evidence) -> _Causes:
    """What reports and dead letters are about, by their queue ids."""
    return {
        detail["report_id"]: (message, detail["recipients"])
        for message in evidence.rows.messages.values()
        for _, step, detail in message.events
        if step == Step.REPORT and "report_id" in detail
    }


def _cause(causes: _Causes, queue_id: str) -> tuple[str, Collection[str]]:
    """Of what, by its token, a report tells in the end, also as a dead letter; and of whom."""
    if queue_id not in causes:
        return "", ()
    message, recipients = causes[queue_id]
    return _cause(causes, message.id) if message.source == "report" else (message.token, recipients)


def _lost(evidence: Evidence, causes: _Causes) -> Iterator[tuple[str, str]]:
    """Of whom nobody hears: the postmaster's own mailbox, or the relay, was away for too long, or
    the report could not be read when it became a dead letter.
    """
    plan = evidence.plan
    gone: list[str] = []
    if any(trouble.kind == "unreadable" for trouble in plan.troubles):
        inboxes = evidence.ledger.inboxes
        gone += [name.partition("-")[0] for _, name, content in inboxes if _is_unread(content)]
    if plan.store_fails or plan.lives:
        # one that died before it could record may have delivered it before
        there = {name.partition("-")[0] for _, name, _ in evidence.ledger.inboxes}
        for message in evidence.rows.messages.values():
            dropped = any(detail.get("kind") == "dropped" for _, _, detail in message.events)
            expired = all(one.state is RecipientState.EXPIRED for one in message.recipients)
            if dropped and expired and message.id not in there:
                gone.append(message.id)
    for queue_id in gone:
        token, recipients = _cause(causes, queue_id)
        yield from ((token, address) for address in recipients)


def _is_unread(content: bytes) -> bool:
    return _UNREAD in content.partition(b"\r\n\r\n")[0]


def no_backscatter(evidence: Evidence) -> Iterator[str]:
    """5: no report about a report, none to an address that a stranger may have made up."""
    for copy in evidence.copies():
        if copy.address == scenario.VICTIM:
            yield f"5: {copy.name} went to {scenario.VICTIM}"
    for message in evidence.rows.messages.values():
        if message.source != "report":
            continue
        for _, step, detail in message.events:
            if step == Step.REPORT and detail.get("kind") not in ("dead-letter", "dropped"):
                yield f"5: the report {message.id} caused {detail}"


def expiry_in_time(evidence: Evidence) -> Iterator[str]:
    """6: no entry expires before its time, or long after it."""
    for queue_id, expires_us, recorded_s, spare_s in evidence.ledger.expiries:
        expires_s = (expires_us - BEGINNING_US) / 1e6
        if recorded_s < expires_s - 0.001:
            yield f"6: {queue_id} expired {expires_s - recorded_s:.0f} s too early"
        expires_s = max(expires_s, evidence.ledger.rerouted_s.get(queue_id, 0.0))
        late_s = recorded_s - expires_s - spare_s
        outage_s = evidence.ledger.outage_s(expires_s, recorded_s)
        turns_s = _turns_s(evidence) if outage_s else 0.0
        if late_s - outage_s - turns_s > _LAST_S_MAX:
            yield f"6: {queue_id} expired {late_s:.0f} s too late"


def _turns_s(evidence: Evidence) -> float:
    """How long all that came due while the relay was down may wait for its one attempt."""
    rates = [parse_rate(text) for text in (evidence.plan.rate, evidence.plan.route_rate)]
    turn_s = max((rate.per_s / rate.count for rate in rates if rate is not None), default=0.0)
    return turn_s * len(evidence.rows.messages)


def cancelled_as_told(evidence: Evidence) -> Iterator[str]:
    """9: what an operator saw cancelled ends so, and nothing else does."""
    ledger = evidence.ledger
    for message in evidence.rows.messages.values():
        for one in message.recipients:
            is_cancelled = one.state is RecipientState.CANCELLED
            is_told = (message.id, one.entry) in ledger.cancelled
            is_known = is_told or (message.id, one.entry) in ledger.cancel_ordered
            where = f"{message.id} {one.entry} ({message.token}) to {one.address}"
            if is_cancelled and not is_known and not ledger.unanswered[message.id]:
                yield f"9: {where} is cancelled, and no operator was found_text so"
            if is_told and not is_cancelled and not _ended_before_its_cancel(message, one):
                yield f"9: {where} saw cancelled, and is {one.state}"


def _ended_before_its_cancel(message: Message, recipient: Recipient) -> bool:
    """Whether others of its entry were cancelled, when this one had its end already."""
    for _, step, detail in message.events:
        if step != Step.DELIVERY:
            continue
        if detail.get("operation") == "cancel" and recipient.entry in detail["entries"]:
            return False
        for found_text in detail.get("recipients", ()):
            if (
                found_text["number"] == recipient.number
                and RecipientState(_STATES[found_text["outcome"]]) in FINAL
            ):
                return True
    return False


def holds_end_once(evidence: Evidence) -> Iterator[str]:
    """9: what a route or a rule holds is delivered only after its release, and is not held by a
    route again.
    """
    for message in evidence.rows.messages.values():
        released: set[int] = set()  # entries
        for _, step, detail in message.events:
            if step != Step.DELIVERY or "operation" not in detail:
                continue
            for entry in detail.get("holds", ()):
                if int(entry) in released:
                    yield f"9: {message.id} {entry} ({message.token}) was released, and is held again"
            is_split = detail["operation"] == "reroute" and released & {*detail["entries"]}
            if detail["operation"] == "release" or is_split:
                released.update(detail["entries"])
        for one in message.recipients:
            if (
                starts_held(evidence, message, one)
                and one.entry not in released
                and one.state not in _UNRELEASED
            ):
                yield f"9: {message.id} ({message.token}) to {one.address} is {one.state} without a release"


def starts_held(evidence: Evidence, message: Message, recipient: Recipient) -> str:
    """What holds the copy from its acceptance: the words of a rule, "route", or "" for nothing."""
    if not recipient.entry or message.source == "report":
        return ""
    domain = recipient.address.partition("@")[2]
    words = evidence.words.get(message.token, "")
    if words in scenario.HELD_S and domain != "captured.test":
        return words
    return "route" if domain in evidence.plan.holds else ""


def freed(message: Message) -> set[int]:
    """The entries that operators have released, or hold in place of a rule."""
    found: set[int] = set()
    for _, step, detail in message.events:
        if step == Step.DELIVERY and (operation := detail.get("operation")):
            is_split = operation == "reroute" and found & {*detail["entries"]}
            if operation in ("release", "hold") or is_split:
                found.update(detail["entries"])
    return found


def reports_are_told_once(evidence: Evidence) -> Iterator[str]:
    """5: no recipient is in two reports of one kind; 1: each success that was asked for is in one."""
    letters = {one.token: one.letter for one in evidence.ledger.tries}
    for message in evidence.rows.messages.values():
        told = Counter(
            (detail["kind"], address)
            for _, step, detail in message.events
            if step == Step.REPORT and "report_id" in detail and detail["kind"] != "dead-letter"
            for address in detail["recipients"]
        )
        for (kind, address), times in told.items():
            if times > 1:
                yield f"5: {message.id} has {times} reports ({kind}) about {address}"
        if message.source == "report" or not message.trusted or not message.reverse_path:
            continue
        for one in message.recipients:
            kind = _success(evidence, message, one)
            is_bulk = "Precedence: bulk" in letters[message.token].fields
            if kind and bool(told[kind, one.address]) == is_bulk:
                yield f"1: {message.id} ({message.token}) to {one.address} is {one.state}; {'reported' if is_bulk else 'unreported'}"
    contents = Counter(
        (token[1].decode(), address.decode(), action.decode())
        for content in {name_of(content): content for _, content in _reports(evidence)}.values()
        if (token := TOKEN.search(content.partition(b"\r\n\r\n")[2]))
        for address, action in _REPORTED.findall(content)
    )
    for (token, address, action), times in contents.items():
        if times > 1:
            yield f"5: {times} reports about {token} say {action} of {address}"


def _success(evidence: Evidence, message: Message, recipient: Recipient) -> str:
    """The kind of the report about a success that was asked for, "" for none: the host that took the
    message reports itself where it offers DSN.
    """
    if "SUCCESS" not in recipient.notify or recipient.added_by:
        return ""
    if not _is_accepted(recipient):
        return "delivered" if recipient.state is RecipientState.DELIVERED else ""
    hosts = [
        detail["host"]
        for _, step, detail in message.events
        if step == Step.DELIVERY
        for one in detail.get("recipients", ())
        if one["number"] == recipient.number and one["outcome"] == str(recipient.state)
    ]
    manners = {site.name: site.manner for sites in evidence.sites.values() for site in sites}
    return "" if "DSN" in manners[hosts[0]].extensions else str(recipient.state)


def keys_are_kept(evidence: Evidence) -> Iterator[str]:
    """7: a submission is one message, and always the same."""
    ids: dict[str, set[str]] = defaultdict(set)
    for one in evidence.ledger.tries:
        if one.letter.via == "pickup" and one.queue_id:
            ids[scenario.submission_key(one.letter)].add(one.queue_id)
    for message in evidence.rows.messages.values():
        if message.submission_id:
            ids[message.submission_id].add(message.id)
    for key, found in ids.items():
        if len(found) > 1:
            yield f"7: {key} became {sorted(found)}"


def events_tell_all(evidence: Evidence) -> Iterator[str]:
    """9: no two events have the same number, and the states can be computed from them."""
    numbered: dict[int, str] = {}
    for message in evidence.rows.messages.values():
        for sequence, _, _ in message.events:
            if (other := numbered.setdefault(sequence, message.id)) != message.id:
                yield f"9: {message.id} and {other} have the event {sequence}"
        held = [one.number for one in message.recipients if starts_held(evidence, message, one)]
        found_text = recompute(message, held)
        for one in message.recipients:
            if one.entry and found_text.get(one.number, "queued") != one.state:
                yield f"9: {message.id} to {one.address} is {one.state}, found_text {found_text.get(one.number)}"


_STATES = {
    "delivered": "delivered",
    "relayed": "relayed",
    "failed": "failed",
    "expired": "expired",
    "deferred": "deferred",
    "indeterminate": "deferred",
}

_UNRELEASED = (RecipientState.EXPIRED, RecipientState.CANCELLED)  # the ends of what stays held
_OPERATED = {
    "hold": RecipientState.HELD,
    "release": RecipientState.QUEUED,
    "cancel": RecipientState.CANCELLED,
}
# A reroute makes of a captured one a queued one, and changes no other state.


def recompute(message: Message, held: Collection[int]) -> dict[int, str]:
    """The states of recipients as the events tell them; without an event: queued, captured, or held
    for those with the numbers `held`.
    """
    states = {
        one.number: "captured"
        for one in message.recipients
        if one.address.endswith("@captured.test")
    }
    states |= dict.fromkeys(held, "held")
    for _, step, detail in message.events:
        if step != Step.DELIVERY:
            continue
        for found_text in detail.get("recipients", ()):
            states[found_text["number"]] = _STATES[found_text["outcome"]]
        if detail.get("operation") == "reroute":
            for one in message.recipients:
                if one.entry in detail["entries"] and states.get(one.number) == "captured":
                    states[one.number] = "queued"
        if after := _OPERATED.get(detail.get("operation", "")):
            for one in message.recipients:
                state = RecipientState(states.get(one.number, "queued"))
                to = RecipientState.DEFERRED if one.entry in detail.get("deferred", ()) else after
                if one.entry in detail["entries"] and to in TRANSITIONS[state]:
                    states[one.number] = to
    return states


def nothing_left_over(evidence: Evidence) -> Iterator[str]:
    """8: no content outlives the last entry that needs it."""
    live = {
        (message.id, one.entry)
        for message in evidence.rows.messages.values()
        for one in message.recipients
        if one.entry and one.state not in FINAL
    }
    if evidence.rows.contents > len(live):
        yield f"8: {evidence.rows.contents} contents for {len(live)} entries"


async def haunt(node: Any, claim: Claim, world: Any) -> None:
    """Record the result of a claim of another time as relayed: as if its attempt went on, and as if it ended."""
    outcome = Relayed(Words("2.0.0", "250 from another time"))
    outcomes = {recipient.id: outcome for recipient in claim.recipients}
    ended = ClaimResult(claim=claim, at_us=node.clock.time_us(), outcomes=outcomes)
    for claim_result in (replace(ended, goes_on=True), ended):
        try:
            held, _ = await node.spool.record(claim_result)
        except Exception:  # noqa: BLE001 - as good as fenced
            return
        world.reached["settled: fenced"] += not held
        if held:
            part = "in part " if claim_result.goes_on else ""
            world.fault(f"invariant 3: {claim.message.id} was settled {part}by the dead")
