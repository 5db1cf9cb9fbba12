"""Fan a message out: sort its recipients into queue entries, one per next hop and content.

A pure function of what routing and the mail rules returned. Each recipient appears exactly once: in
an entry, or in a final state (rejected, discarded, redirected).

RFC 5321 4.1.1.3; RFC 3461 4.1 (NOTIFY); docs/design.md 1.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from relay.message.envelope import ForwardPath, Notify
from relay.message.header import ParsedContent
from relay.message.lifecycle import RecipientState
from relay.message.nexthop import LOCAL, NextHop
from relay.message.outcome import Evidence
from relay.message.status import own_reply
from relay.message.verdict import RecipientVerdict, Verdict, VerdictAction
from relay.mime.dsn import ReportedRecipient
from relay.routing.route_table import (
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
)
from relay.spool.types import NewEntry, NewRecipient

_NEVER = frozenset({Notify.NEVER})


class FanOut(Struct, frozen=True):
    """The result for one message; `contents` has those in use, or else the original."""

    contents: tuple[ParsedContent, ...]
    entries: tuple[NewEntry, ...]
    final_recipients: tuple[NewRecipient, ...]

    @property
    def rejected(self) -> tuple[NewRecipient, ...]:
        """The rejected recipients, for which a report may be due."""
        return tuple(each for each in self.final_recipients if each.state is RecipientState.FAILED)

    @property
    def rejects_all(self) -> bool:
        """Whether every recipient that the client named is rejected."""
        given = [each for each in self.final_recipients if not each.added_by]
        in_entries = any(not each.added_by for entry in self.entries for each in entry.recipients)
        return not in_entries and all(each.state is RecipientState.FAILED for each in given)


def fan_out(
    paths: Sequence[ForwardPath],
    examinations: Sequence[RoutingResult],
    verdict: Verdict,
    *,
    examine: Callable[[str], RoutingResult],
    answers_discarded: str = "",
) -> FanOut:
    """Sort recipients into entries; `examine` routes those that a rule added. With
    `answers_discarded`, the reason, answers to reports are discarded; they never cause a report.

    There is one of `examinations` for each path. `verdict` has one for each valid recipient, in the
    same order: rules do not see invalid recipients.
    """
    buckets: dict[tuple[NextHop, int], list[NewRecipient]] = {}
    final: list[NewRecipient] = []
    verdicts = iter(verdict.recipients)
    for position, (path, found) in enumerate(zip(paths, examinations, strict=True), 1):
        start = NewRecipient(path, position=position)
        if isinstance(found, InvalidRecipient):
            final.append(_failed(start, found.status, found.text))
            continue
        decided = next(verdicts)
        if isinstance(found, LocalRecipient) and found.is_answer:
            start = replace(start, path=replace(path, notify=_NEVER))
            if answers_discarded and decided.action is VerdictAction.DELIVER:
                final.append(
                    replace(start, state=RecipientState.DISCARDED, reply=answers_discarded)
                )
                continue
        if (final_state := _final_state(start, decided)) is not None:
            final.append(final_state)
        else:
            _put(buckets, found, start, content=decided.content)
    served = {each.path.address for bucket in buckets.values() for each in bucket}
    for addition in verdict.additions:
        if addition.address in served:
            continue
        served.add(addition.address)
        found = examine(addition.address)
        added = NewRecipient(ForwardPath(addition.address, _NEVER), added_by=addition.rule)
        if isinstance(found, InvalidRecipient):
            final.append(_failed(added, found.status, found.text))
        else:
            _put(buckets, found, added, content=addition.content)
    used = sorted({content for _, content in buckets}) or [0]
    return FanOut(
        contents=tuple(verdict.contents[content] for content in used),
        entries=tuple(
            NewEntry(next_hop, tuple(bucket), content=used.index(content))
            for (next_hop, content), bucket in buckets.items()
        ),
        final_recipients=tuple(final),
    )


def reported_recipient(recipient: NewRecipient, rule: str) -> ReportedRecipient:
    """Return a rejected recipient for a report; `rule` rejected it, unless it is ""."""
    evidence = Evidence(status=recipient.status, reply=recipient.reply)
    return ReportedRecipient(recipient.path, evidence, added_by=recipient.added_by, rule=rule)


def _final_state(start: NewRecipient, verdict: RecipientVerdict) -> NewRecipient | None:
    """Return the recipient in its final state, or None if it is to be delivered."""
    match verdict.action:
        case VerdictAction.DELIVER:
            return None
        case VerdictAction.REJECT:
            return _failed(start, verdict.status, own_reply(verdict.status, verdict.text))
        case VerdictAction.DISCARD:
            return replace(start, state=RecipientState.DISCARDED)
        case VerdictAction.REDIRECT:
            return replace(start, state=RecipientState.REDIRECTED, successors=verdict.successors)
        case _:
            assert_never(verdict.action)


def _failed(recipient: NewRecipient, status: str, reply: str) -> NewRecipient:
    return replace(recipient, state=RecipientState.FAILED, status=status, reply=reply)


def _put(
    buckets: dict[tuple[NextHop, int], list[NewRecipient]],
    examination: LocalRecipient | RemoteRecipient,
    recipient: NewRecipient,
    *,
    content: int,
) -> None:
    next_hop = LOCAL if isinstance(examination, LocalRecipient) else examination.next_hop
    buckets.setdefault((next_hop, content), []).append(recipient)
