"""Fan a message out: sort its recipients into queue entries, one per next hop and content, and
one more for what is held.

fan_out() is a pure function of the results of routing and of the mail rules. Each recipient appears
exactly once: in an entry, or in a final state (rejected, discarded, redirected, expanded).

routing_event() is the event of step 5: what the rules and the routes made of the message.

RFC 5321 4.1.1.3; RFC 3461 4.1 (NOTIFY); docs/design.md 1.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import Expansion
from relay.base.message.envelope import ForwardPath, Notify
from relay.base.message.header import ParsedContent
from relay.base.message.lifecycle import OF_MILTER, RecipientState, hold_text
from relay.base.message.nexthop import LOCAL, NextHop
from relay.base.message.outcome import Evidence
from relay.base.message.status import own_reply
from relay.base.message.verdict import (
    AddedCopies,
    AddedRecipient,
    Hold,
    RecipientVerdict,
    Verdict,
    VerdictAction,
)
from relay.formats.dsn import ReportedRecipient
from relay.store.journeys.details import RefusedRecipient, ReplacedSender, RoutedDetail
from relay.store.journeys.events import Event
from relay.store.mailbox.stored_message import WellKnown
from relay.store.spool.types import NO_EXTRA, EntryExtra, NewEntry, NewRecipient
from relay.transport.ingress.forwarding import BORROWS, UNPROVEN, ExpandedRecipients
from relay.transport.ingress.stages import DecidedMail, Examine
from relay.transport.routing.routing_result import (
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
)
from relay.transport.signing.signer import SignedContents

_NEVER = frozenset({Notify.NEVER})
_NAMED_MAX = 100  # addresses per next hop in an event, to bound its size
_Key = tuple[NextHop, int, EntryExtra]  # next hop, content and extra fields of an entry
_Copy = tuple[str, str, str]  # a copy that a rule adds: the rule, the tenant, the address


class HoldTimes(Struct, frozen=True):
    """When a message is accepted, in queue time, and how long new mail is attempted."""

    accepted_us: int = 0
    lifetime_us: int = 0

    def held(self, extra: EntryExtra, hold: Hold) -> EntryExtra:
        """Return the fields of an entry that a rule holds."""
        lasts_us = None if hold.expires_s is None else int(hold.expires_s * 1_000_000)
        return replace(
            extra,
            reason=hold.reason,
            rule=hold.rule,
            silent=hold.silent,
            until_us=0,
            expires_us=0 if lasts_us is None else self.accepted_us + lasts_us,
            lifetime_us=self.lifetime_us,
        )


_NO_TIMES = HoldTimes()


class FanOut(Struct, frozen=True):
    """The result for one message; `contents` has the contents in use, or else the original.

    `aliases` are the recipients that others have replaced; they are among `final_recipients` too.
    """

    contents: tuple[ParsedContent, ...]
    entries: tuple[NewEntry, ...]
    final_recipients: tuple[NewRecipient, ...]
    aliases: tuple[NewRecipient, ...] = ()

    @property
    def rejected(self) -> tuple[NewRecipient, ...]:
        """The rejected recipients, for which a report may be due."""
        state = RecipientState.FAILED
        return tuple([recipient for recipient in self.final_recipients if recipient.state is state])

    @property
    def quarantined(self) -> tuple[NewRecipient, ...]:
        """The recipients whose copy is quarantined at another address. To the sender, the copy is
        delivered.
        """
        state = RecipientState.DELIVERED
        return tuple(recipient for recipient in self.final_recipients if recipient.state is state)

    @property
    def in_mailboxes(self) -> frozenset[str]:
        """The recipients whose copies go into mailboxes of this relay."""
        local = (entry for entry in self.entries if entry.next_hop == LOCAL)
        return frozenset(
            recipient.path.address for entry in local for recipient in entry.recipients
        )

    @property
    def rejects_all(self) -> bool:
        """Whether every recipient that the client named is rejected.

        An alias is rejected if all its addresses are. If milters removed all recipients, those that
        milters added count instead.
        """
        gone, final = RecipientState.DISCARDED, self.final_recipients
        places = {
            alias.position for alias in self.aliases if alias.successors or alias.state is gone
        }
        named = [recipient for recipient in final if recipient.position not in places]
        for counts in (_is_own, _is_of_milter):
            if any(counts(recipient) for entry in self.entries for recipient in entry.recipients):
                return False
            if those := [recipient for recipient in named if counts(recipient)]:
                return all(recipient.state is RecipientState.FAILED for recipient in those)
        return False


class SignedMail(Struct, frozen=True):
    """A message that is sorted into entries, whose contents are signed."""

    decided: DecidedMail
    fan_out: FanOut  # with the signed contents
    signed: SignedContents


def _is_own(recipient: NewRecipient) -> bool:
    return not recipient.added_by


def _is_of_milter(recipient: NewRecipient) -> bool:
    return recipient.added_by.startswith(OF_MILTER)


def fan_out(
    recipients: ExpandedRecipients,
    examinations: Sequence[RoutingResult],
    verdict: Verdict,
    *,
    examine: Callable[[AddedRecipient, str, str], RoutingResult],
    expand: Callable[[str], Expansion | None],
    sender_of: Callable[[str, str, AddedRecipient | None], str],
    answers_discarded: str = "",
    times: HoldTimes = _NO_TIMES,
) -> FanOut:
    """Sort recipients into entries.

    `expand` and `examine` are for recipients that a rule added. `sender_of` returns the sender of a
    copy that an alias or a rule sends; "" is the sender of the message. If `answers_discarded` has
    a reason, answers to reports are discarded. `times` are for holds.

    `examinations` has the route of each recipient. `verdict` has a decision about each valid
    recipient, in the same order: rules do not see invalid recipients.
    """
    buckets: dict[_Key, list[NewRecipient]] = {}
    plain: dict[tuple[int, int], list[NewRecipient]] = {}  # by the route's identity and content
    key_of = partial(_key, sender_of=sender_of, times=times)
    final: list[NewRecipient] = list(recipients.aliases)
    additions = [(*addition, examine(*addition)) for addition in _additions(verdict, expand)]
    refused = _refused(additions)
    verdicts = iter(verdict.recipients)
    for path, position, forwarded_by, route in zip(
        recipients.paths, recipients.positions, recipients.forwarded_by, examinations, strict=True
    ):
        added_by = recipients.added_by.get(path.address, "")
        start = NewRecipient(path, position=position, added_by=added_by)
        if isinstance(route, InvalidRecipient):
            if route.is_late:
                next(verdicts)
            final.append(_failed(start, route.status, route.text))
            continue
        decided = next(verdicts)
        if route.is_answer:
            start = replace(start, path=replace(path, notify=_NEVER))
            if answers_discarded and decided.action is VerdictAction.DELIVER:
                final.append(_discarded(start, answers_discarded))
                continue
        if decided.action is not VerdictAction.DELIVER:
            final.append(_final_state(start, decided, refused))
            continue
        is_plain = not (forwarded_by or decided.hold or decided.in_junk)
        if not is_plain or (bucket := plain.get((id(route), decided.content))) is None:
            key = key_of(route, path.address, decided, forwarded_by=forwarded_by)
            bucket = buckets.setdefault(key, [])
            if is_plain:  # so the address makes no difference
                plain[id(route), decided.content] = bucket
        bucket.append(start)
    served = [recipient.path.address for bucket in buckets.values() for recipient in bucket]
    copies = AddedCopies(served if additions else ())
    for addition, address, forwarded_by, route in additions:
        if not copies.needs(address, addition):
            continue
        added = NewRecipient(ForwardPath(address, _NEVER), added_by=addition.rule)
        if isinstance(route, InvalidRecipient):
            final.append(_failed(added, route.status, route.text))
        else:
            key = key_of(route, address, addition, forwarded_by=forwarded_by)
            buckets.setdefault(key, []).append(added)
    used = sorted({content for _, content, _ in buckets}) or [0]
    return FanOut(
        contents=tuple(verdict.contents[content] for content in used),
        entries=tuple(_entry(key, bucket, used) for key, bucket in buckets.items()),
        final_recipients=tuple(final),
        aliases=recipients.aliases,
    )


def _refused(additions: Sequence[tuple[AddedRecipient, str, str, RoutingResult]]) -> set[_Copy]:
    """Return the copies that rules add and that must not leave in any content."""
    copies = {
        ((addition.rule, addition.tenant, addition.address), route == BORROWS)
        for addition, *_, route in additions
    }
    return {copy for copy, is_lent in copies if is_lent and (copy, False) not in copies}


def _copies_of(redirected: RecipientVerdict) -> Iterator[_Copy]:
    for address in redirected.successors:
        yield redirected.rule, redirected.tenant, address


def examined_recipients(
    recipients: ExpandedRecipients, examine: Examine
) -> Sequence[RoutingResult]:
    """Return where the mail for each of the recipients goes."""
    places = zip(recipients.paths, recipients.positions, recipients.forwarded_by, strict=True)
    added = recipients.added_by
    return [
        examine(path.address, by, bool(by) or not (position or path.address in added))
        for path, position, by in places
    ]


def has_answers(examinations: Sequence[RoutingResult]) -> bool:
    """Return whether a recipient is one to which only answers to reports are written."""
    return any(
        not isinstance(route, InvalidRecipient) and route.is_answer for route in examinations
    )


def later_routes(
    before: Sequence[RoutingResult], after: Sequence[RoutingResult]
) -> Sequence[RoutingResult]:
    """Return the later routes; if the validity of a recipient has changed, the route before, unless
    the later one would vouch for a borrowed name.
    """
    return [
        later
        if isinstance(later, InvalidRecipient) == isinstance(was, InvalidRecipient)
        else (replace(later, is_late=True) if later in (BORROWS, UNPROVEN) else was)
        for was, later in zip(before, after, strict=True)
    ]


def with_next_hops(
    examinations: Sequence[RoutingResult],
    verdict: Verdict,
    chosen: Callable[[str, str, LocalRecipient | RemoteRecipient], RoutingResult],
) -> Sequence[RoutingResult]:
    """Return the examinations, with the next hops that rules chose; `chosen` examines these."""
    if not any(recipient.next_hop for recipient in verdict.recipients):  # nearly always
        return examinations
    verdicts = iter(verdict.recipients)

    routes = list[RoutingResult]()
    for route in examinations:
        if not isinstance(route, InvalidRecipient):
            decided = next(verdicts)
            if decided.next_hop and decided.action is VerdictAction.DELIVER:
                routes.append(chosen(decided.address, decided.next_hop, route))
                continue
        elif route.is_late:
            next(verdicts)
        routes.append(route)
    return routes


def _entry(key: _Key, bucket: Sequence[NewRecipient], used: Sequence[int]) -> NewEntry:
    next_hop, content, extra = key
    return NewEntry(next_hop, tuple(bucket), content=used.index(content), extra=extra)


def reported_recipient(recipient: NewRecipient, rule: str) -> ReportedRecipient:
    """Return a rejected recipient for a report; `rule` rejected it, unless it is ""."""
    evidence = Evidence(status=recipient.status, reply=recipient.reply)
    return ReportedRecipient(recipient.path, evidence, added_by=recipient.added_by, rule=rule)


def _final_state(
    start: NewRecipient, verdict: RecipientVerdict, refused: set[_Copy]
) -> NewRecipient:
    """Return a recipient that is not to be delivered in its final state."""
    assert verdict.action is not VerdictAction.DELIVER
    match verdict.action:
        case VerdictAction.REJECT:
            return _failed(start, verdict.status, own_reply(verdict.status, verdict.text))
        case VerdictAction.DISCARD:
            return _discarded(start)
        case VerdictAction.REDIRECT if refused.issuperset(_copies_of(verdict)):
            return _failed(start, BORROWS.status, BORROWS.text)
        case VerdictAction.REDIRECT:
            return replace(start, state=RecipientState.REDIRECTED, successors=verdict.successors)
        case VerdictAction.QUARANTINE:  # RFC 3463 3.2
            reply = f"250 2.1.5 delivered to {start.path.address}"
            return replace(start, state=RecipientState.DELIVERED, status="2.1.5", reply=reply)
        case _:
            assert_never(verdict.action)


def _discarded(recipient: NewRecipient, reply: str = "") -> NewRecipient:
    return replace(recipient, state=RecipientState.DISCARDED, reply=reply)


def _failed(recipient: NewRecipient, status: str, reply: str) -> NewRecipient:
    return replace(recipient, state=RecipientState.FAILED, status=status, reply=reply)


def _key(
    examination: LocalRecipient | RemoteRecipient,
    address: str,
    decided: RecipientVerdict | AddedRecipient,
    *,
    forwarded_by: str,
    sender_of: Callable[[str, str, AddedRecipient | None], str],
    times: HoldTimes,
) -> _Key:
    """Return the key of the entry of a recipient.

    If both a rule and the route hold it, the hold of the rule is shown; a release ends both.
    """
    is_local, hold, folder = isinstance(examination, LocalRecipient), decided.hold, ""
    if isinstance(decided, RecipientVerdict) and decided.in_junk:
        hold = decided.held(in_mailbox=is_local)
        folder = str(WellKnown.JUNK_EMAIL) if is_local else ""
    content = decided.content
    if isinstance(examination, LocalRecipient):  # whose copy names the address that it is for
        next_hop, chosen, forwarded_by = LOCAL, False, ""
    else:
        next_hop, chosen = examination.next_hop, examination.chosen
    added = decided if isinstance(decided, AddedRecipient) and not is_local else None
    sender = sender_of(forwarded_by, address, added) if forwarded_by or added else ""
    if not (sender or forwarded_by or examination.held or chosen or hold or folder):
        return next_hop, content, NO_EXTRA
    extra = EntryExtra(
        chosen=chosen,
        sender=sender,
        delivered_to=forwarded_by,
        reason=examination.held,
        folder=folder,
    )
    return next_hop, content, extra if hold is None else times.held(extra, hold)


def _additions(
    verdict: Verdict, expand: Callable[[str], Expansion | None]
) -> Iterator[tuple[AddedRecipient, str, str]]:
    """Yield each addition with the addresses that get it, and the alias that leads to them."""
    for addition in verdict.additions:
        expansion = expand(addition.address)
        if expansion is None or not expansion.targets:  # the alias is no recipient
            yield addition, addition.address, ""
        else:
            for target in expansion.targets:
                yield addition, target.address, target.forwarded_by


def notices_of(verdict: Verdict, fan_out: FanOut) -> dict[str, list[ReportedRecipient]]:
    """Return the recipients whose sender gets a notice that a rule holds their copies, by rule."""
    holds = {
        recipient.address: recipient.hold
        for recipient in verdict.recipients
        if recipient.hold is not None
    }
    held = [
        recipient for entry in fan_out.entries if entry.extra.rule for recipient in entry.recipients
    ]
    held += [
        recipient
        for recipient in fan_out.final_recipients
        if recipient.state is RecipientState.REDIRECTED
    ]
    notices: dict[str, list[ReportedRecipient]] = {}
    for recipient in held:
        hold = None if recipient.added_by else holds.get(recipient.path.address)
        if hold is not None and hold.notice:
            evidence = Evidence("4.7.1", hold.notice)  # RFC 3463 3.8
            about = ReportedRecipient(recipient.path, evidence, rule=hold.rule)
            notices.setdefault(hold.rule, []).append(about)
    return notices


def routing_event(mail: SignedMail, at_us: int) -> Event:
    """Return the event of step 5, without recipients that rules added.

    If a list of addresses is cut, `counts` has its full length. The client of mail from pickup is
    in the event of step 2.
    """
    decided, fan_out = mail.decided, mail.fan_out
    verdict, sender, origin = decided.verdict, decided.sender, decided.arrival.origin
    next_hops: dict[str, list[str]] = {}
    routes: dict[str, list[str]] = {}  # that chose a next hop
    held: dict[str, list[str]] = {}  # by the reason
    junk: set[str] = set()  # whose copies go into Junk Email
    for entry in fan_out.entries:
        addresses = [
            recipient.path.address for recipient in entry.recipients if not recipient.added_by
        ]
        if not addresses:
            continue
        next_hops.setdefault(str(entry.next_hop), []).extend(addresses)
        if name := entry.next_hop.route:
            names = routes.setdefault(str(entry.next_hop), [])
            names += [name] if name not in names else []
        if entry.extra.reason:
            by = hold_text(entry.extra.reason, entry.extra.rule)
            held.setdefault(by, []).extend(addresses)
        junk.update(addresses if entry.extra.folder else ())
    rejected = [recipient for recipient in fan_out.rejected if not recipient.added_by]
    aliases = [alias for alias in fan_out.aliases if alias.successors]
    extras = [
        entry.extra for entry in fan_out.entries if entry.extra.sender and not _is_added(entry)
    ]
    sizes = {hop: len(addresses) for hop, addresses in next_hops.items()} | {
        "aliases": len(aliases),
        "refused": len(rejected),
    }
    replaced = ReplacedSender(sender, verdict.sender) if verdict.sender and sender else None
    detail = RoutedDetail(
        rules=[hit.as_recorded() for hit in verdict.hits],
        next_hops={hop: addresses[:_NAMED_MAX] for hop, addresses in next_hops.items()},
        dkim=mail.signed.signed_with,
        unsigned=mail.signed.unsigned,
        used=decided.rules.identity(verdict.tenants, decided.examined.account),
        routes=routes,
        sender=replaced,
        held={reason: names[:_NAMED_MAX] for reason, names in held.items()},
        quarantined=_quarantined(verdict, junk),
        client=None if origin.pickup else origin.client,
        bare_lf=origin.has_bare_lf,
        aliases=[alias.path.address for alias in aliases[:_NAMED_MAX]],
        senders={extra.delivered_to: extra.sender for extra in extras[:_NAMED_MAX]},
        refused=[
            RefusedRecipient(recipient.path.address, recipient.reply)
            for recipient in rejected[:_NAMED_MAX]
        ],
        counts={name: size for name, size in sizes.items() if size > _NAMED_MAX},
    )
    return Event(at_us, detail)


def _is_added(entry: NewEntry) -> bool:
    """Return whether rules added all recipients of an entry; the sender does not know them."""
    return all(recipient.added_by for recipient in entry.recipients)


def _quarantined(verdict: Verdict, junk: Collection[str]) -> dict[str, list[str]]:
    """Return recipients by the rule that quarantines them; `junk` are those with Junk Email."""
    by_rule: dict[str, list[str]] = {}
    for recipient in verdict.recipients:
        if recipient.action is VerdictAction.QUARANTINE or recipient.address in junk:
            by = f'rule "{recipient.rule}"' if recipient.rule else "DMARC"
            text = f"{by} ({recipient.quarantined})"
            by_rule.setdefault(text, []).append(recipient.address)
    return {text: names[:_NAMED_MAX] for text, names in by_rule.items()}
