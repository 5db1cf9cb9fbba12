"""The words for the steps of a journey: what an event says, and what a message waits for.

`relay trace`, `relay wait` and the pages use them. Everything here is a pure function. The texts
have the characters of the message in them: the caller makes them safe for a terminal or a page.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from msgspec import to_builtins

from relay.base.message.envelope import Client
from relay.base.phrases import counted, moment, named
from relay.store.journeys import details
from relay.store.journeys.document import Attempt, Durations, attempts_in
from relay.store.journeys.events import NO_SIGNING_KEYS
from relay.store.journeys.sentences import claim_words, remote_report

_NAMES_MAX = 5  # on one line
_DETAIL_CHARACTERS_MAX = 300
RELEASE_RESTORED = "see relay queue list --restored, then relay queue release --restored"

WAITS_FOR = {
    1: "the draft is created, but not submitted",
    2: "pickup has not built the mail yet",
    3: "the mail is built, but transport has not accepted it; pickup retries",
    4: "accepted, not routed yet",
    5: "routed, but no delivery was attempted yet",
    6: "delivery was attempted",
    7: "a report was sent",
}
REASONS = {
    "scheduled": "waits for the time that the sender chose",
    "converting": "is built and submitted by pickup",
    "queued": "waits for its first attempt",
    "deferred": "will be retried",
    "held": "is held until an operator releases it",
    "captured": "is captured by a route",
}


_ANSWERS = {
    "continue": "accepted it",
    "accept": "accepted it",
    "discard": "discarded it",
    "down": "was down",
}
_DONE = {
    "retry": "tried now:",
    "hold": "held",
    "release": "released",
    "cancel": "cancelled",
    "reroute": "rerouted",
}


def client_line(client: Client) -> str:
    """Return the client that submitted a message, "" if unknown."""
    parts = [client.address or ("a Unix socket" if client != Client() else "")]
    parts += [f"EHLO {client.helo}"] if client.helo else []
    parts += [f"login {client.account}"] if client.account else []
    parts += [client.tls] if client.tls else []
    return f"from {', '.join(parts)}" if any(parts) else ""


def signature_words(detail: details.RoutedDetail) -> str:
    """Return with which keys a message was signed, or why it was not; "" without keys."""
    selectors: dict[str, list[str]] = {}
    for signature in detail.dkim:
        selectors.setdefault(signature.domain, []).append(signature.selector)
    reason = detail.unsigned
    if not selectors:
        return "" if reason in ("", NO_SIGNING_KEYS) else f"not signed: {reason}"
    signers = [f"{domain} ({', '.join(names)})" for domain, names in selectors.items()]
    but = f"; a copy is not signed: {reason}" if reason else ""
    return f"signed for {', '.join(signers)}{but}"


def milter_words(milter: details.MilterSaid) -> str:
    """Return what a milter did with a message (step 5)."""
    changes = (change.partition(" ") for change in milter.changes)
    done = [f"{verb.removesuffix('e')}ed {what}".rstrip() for verb, _, what in changes]
    done = _few(done) or [_ANSWERS.get(milter.answer, "refused it")]
    reason = f": {milter.reason}" if milter.reason else ""
    return f"milter {milter.name} {', '.join(done)}{reason}"


def describe(step: int, stored: Mapping[str, Any]) -> Iterator[str]:
    """Yield the details of an event, without its node, one short line each."""
    match details.read_detail(step, stored):
        case details.RoutedDetail() as routed:
            yield from _routed(routed)
        case details.AttemptDetail() as tried:
            yield from _attempt(tried)
        case details.CommandDetail() as command:
            yield _operation(command)
        case details.ClaimDetail() as claim:
            yield claim_words(remote_report(claim), named(claim.recipients))
            if claim.more:
                yield f"{counted(claim.more, 'further report')} on {named(claim.recipients)}"
        case details.ComplaintDetail() as complaint:
            about = f" on {named(complaint.recipients)}" if complaint.recipients else ""
            kind = f"{complaint.type}{about}; the sender checks: {complaint.verdict}"
            yield f"feedback report of {complaint.source.name}: {kind}"
        case details.AcceptedDetail(folder=None) as accepted:
            yield f"not kept, queue_id {accepted.queue_id}"
        case details.ConvertedDetail() as made if made.draft:
            size = f"size {made.size}, recipients {made.recipients}"
            yield "; ".join([size, *_few([*made.changes, *made.defects])])
        case known:  # what another version has recorded besides is in the JSON
            values = to_builtins(known).items()
            said = [f"{name} {_short(value)}" for name, value in values if name != "node"]
            yield from [", ".join(said)] if said else []


def _attempt(detail: details.AttemptDetail) -> Iterator[str]:
    by = f" by {detail.host}" if detail.host else ""
    yield from _few(
        [
            f"{recipient.address} {recipient.outcome}{by}: {recipient.reply}"
            for recipient in detail.recipients
        ]
    )
    if detail.held:
        yield f"held: {detail.held}"
    yield from (f"not tried: {skipped}" for skipped in detail.mx if ": " in skipped)
    yield from (f"tried {tried}" for tried in detail.hosts)
    peer = f"[{detail.address}]" if detail.address else detail.host
    for _, attempt in islice(attempts_in(detail, ""), 1 if peer else 0):  # they were made together
        took = f", {_durations(attempt.durations)}" if attempt.durations else ""
        yield f"to {peer}, {tls_words(attempt, detail.cipher)}{took}"
        if attempt.encoded:
            yield f"encoded again: {attempt.encoded}"
    if detail.not_carried:
        yield f"not carried: {named(detail.not_carried)}"


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


def _routed(detail: details.RoutedDetail) -> Iterator[str]:
    if detail.bare_lf:
        yield "lines ended in LF alone, which many servers refuse: Relay made it CRLF"
    yield from map(milter_words, detail.milters)
    for hit in detail.rules:
        conditions = ", ".join(f'{match.condition} "{match.value}"' for match in hit.because)
        because = f" ({conditions})" if conditions else ""
        outcome = f"skipped: {hit.error}" if hit.error else hit.outcome
        audit = " (audit mode: recorded only)" if hit.mode == "audit" else ""
        yield f'rule "{hit.rule}": {outcome}{audit}{because}'
    if sender := detail.sender:
        yield f"sender {sender.given} replaced by {sender.to}"
    if detail.tls:
        yield f"TLS demanded by the message: {detail.tls}"
    if signed := signature_words(detail):
        yield signed
    counts = detail.counts  # an event names at most a few recipients
    if detail.aliases:
        yield f"aliases: {named(detail.aliases, counts.get('aliases'))}"
    for hop, recipients in detail.next_hops.items():
        routes = detail.routes.get(hop)
        by = f" (route {', '.join(routes)})" if routes else ""
        yield f"{hop}{by}: {named(recipients, counts.get(hop))}"
    for alias, address in detail.senders.items():
        yield f"sender of what {alias} forwards: {address}"
    for reason, addresses in detail.held.items():
        yield f"held by {reason}: {named(addresses)}"
    for text, addresses in detail.quarantined.items():
        yield f"quarantined by {text}: {named(addresses)}"
    for mail in detail.mails:
        kind = "journal report" if mail.kind == "journal" else "notice"
        yield f"{kind} {mail.queue_id} to {mail.to}: {named(mail.rules)}"
    refused = [f"refused: {recipient.address} {recipient.reply}" for recipient in detail.refused]
    yield from _few(refused, counts.get("refused"))


def _operation(detail: details.CommandDetail) -> str:
    """Return an operator's command and its reason."""
    numbers = [str(number) for number in detail.entries]
    result = [f"{detail.operation} by {detail.who or '?'}"]
    if detail.copies:
        result.append(f"a copy for {', '.join(detail.copies)}")
    if detail.until:
        result.append(f"until {moment(detail.until, '')}")
    if detail.to:
        result.append(f"to {named(detail.to)}")
    if detail.holds:
        result.append(f"held by {named(list(dict.fromkeys(detail.holds.values())))}")
    if detail.why:
        result.append(f"because: {detail.why}")
    result += _few([_draft(name, detail.operation) for name in detail.drafts])
    result.append(f"{'entry' if len(numbers) == 1 else 'entries'} {named(numbers)}")
    return ", ".join(result)


def _draft(name: str, operation: str) -> str:
    """Return the words for one of CommandDetail.drafts."""
    mailbox, _, draft = name.rpartition(" ")
    words = "a draft may be left in Drafts: Message-ID" if draft[-1:] == ">" else "left in Drafts:"
    return f"{'deleted:' if operation == 'delete drafts' else words} {draft} of {mailbox}"


def _few(lines: Sequence[str], count: int | None = None) -> list[str]:
    more = (count or len(lines)) - _NAMES_MAX
    return [*lines[:_NAMES_MAX], *([f"and {more} more"] if more > 0 else [])]


def _short(value: Any) -> str:
    text = named([str(part) for part in value]) if isinstance(value, list) else str(value)
    return text[:_DETAIL_CHARACTERS_MAX]


def changed_line(operation: str, answer: Mapping[str, Any]) -> str:
    """Return the result of a queue command in one line."""
    done, matched = answer["done"], answer["matched"]
    verb = f"would {operation}" if answer["dry_run"] else _DONE[operation]
    parts = [f"{verb} {done} of {counted(matched, 'entry')}"]
    if unchanged := answer["unchanged"]:
        parts.append(f"{unchanged} {'stays as it was' if unchanged == 1 else 'stay as they were'}")
    if domains := answer.get("new"):
        parts.append(f"and what comes for {named(domains)}")
    if ordered := answer.get("ordered"):
        parts.append(f"{ordered} ordered")
    if (reports := answer.get("reports")) is not None:
        parts.append(f"{counted(reports, 'report')} to senders")
    line = ", ".join(parts)
    if left := answer.get("still_held"):
        line += f"; a restore still holds {counted(left, 'submission')}: {RELEASE_RESTORED}"
    return line
