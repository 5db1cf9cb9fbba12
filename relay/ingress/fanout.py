"""Step 5's decision: examinations and verdict in, entries and final recipients out.

On the path: acceptance examines and evaluates, this puts together what the spool will keep.
Holds: pure; each recipient comes out once, in an entry or final; one entry per hop and content.
Fails: never.
Standards: RFC 5321 4.1.1.3; RFC 3461 4.1 (NOTIFY); docs/design.md 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from relay.message.content import Content
from relay.message.envelope import ForwardPath, Notify
from relay.message.lifecycle import State
from relay.message.nexthop import LOCAL, NextHop
from relay.message.outcome import Evidence
from relay.message.reporting import ReportedRecipient
from relay.message.status import own_reply
from relay.message.verdict import Fate, RecipientVerdict, Verdict
from relay.routing.route_table import Examination, InvalidRecipient, LocalRecipient, RemoteRecipient
from relay.spool.types import NewEntry, NewRecipient

_NEVER = frozenset({Notify.NEVER})


@dataclass(frozen=True, slots=True)
class Judged:
    """A recipient with what routing found of it and what the rules say of it."""

    path: ForwardPath
    examination: Examination
    verdict: RecipientVerdict


@dataclass(frozen=True, slots=True)
class FanOut:
    """What one message comes to; `contents` are those in use, the original if none is."""

    contents: tuple[Content, ...]
    entries: tuple[NewEntry, ...]
    final_recipients: tuple[NewRecipient, ...]

    @property
    def refused(self) -> tuple[NewRecipient, ...]:
        """The recipients that will never get it, and whose sender may have to hear of it."""
        return tuple(each for each in self.final_recipients if each.state is State.FAILED)

    @property
    def refuses_all(self) -> bool:
        """Whether not one of the client's recipients gets it, or gets it somewhere else."""
        given = [each for each in self.final_recipients if not each.added_by]
        in_entries = any(not each.added_by for entry in self.entries for each in entry.recipients)
        return not in_entries and all(each.state is State.FAILED for each in given)


def judge(
    paths: Sequence[ForwardPath], examinations: Sequence[Examination], verdict: Verdict
) -> tuple[Judged, ...]:
    """Join recipients with their verdicts: `verdict` has one for each that is valid, in order."""
    verdicts = iter(verdict.recipients)
    unasked = RecipientVerdict("")  # rules are not asked about invalid recipients
    return tuple(
        Judged(path, found, unasked if isinstance(found, InvalidRecipient) else next(verdicts))
        for path, found in zip(paths, examinations, strict=True)
    )


def fan_out(
    judged: Sequence[Judged], verdict: Verdict, examine: Callable[[str], Examination]
) -> FanOut:
    """Sort recipients into entries per next hop and content; `examine` is asked of added ones."""
    buckets: dict[tuple[NextHop, int], list[NewRecipient]] = {}
    final: list[NewRecipient] = []
    for position, each in enumerate(judged, 1):
        path, found = each.path, each.examination
        start = NewRecipient(path.address, notify=path.notify, orcpt=path.orcpt, position=position)
        if isinstance(found, InvalidRecipient):
            final.append(_failed(start, found.status, found.text))
        elif (ended := _ended(start, each.verdict)) is not None:
            final.append(ended)
        else:
            _put(buckets, found, start, content=each.verdict.content)
    served = {each.address for bucket in buckets.values() for each in bucket}
    for addition in verdict.additions:
        if addition.address in served:
            continue
        served.add(addition.address)
        found = examine(addition.address)
        added = NewRecipient(addition.address, notify=_NEVER, added_by=addition.rule)
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


def reported(recipient: NewRecipient) -> ReportedRecipient:
    """Return a refused recipient as reports need it."""
    return ReportedRecipient(
        address=recipient.address,
        orcpt=recipient.orcpt,
        evidence=Evidence(status=recipient.status, reply=recipient.reply),
        notify=recipient.notify,
        added_by=recipient.added_by,
    )


def _ended(start: NewRecipient, verdict: RecipientVerdict) -> NewRecipient | None:
    """Return the recipient in its final state, None if it is to be delivered."""
    match verdict.fate:
        case Fate.DELIVER:
            return None
        case Fate.REJECT:
            return _failed(start, verdict.status, own_reply(verdict.status, verdict.text))
        case Fate.DISCARD:
            return replace(start, state=State.DISCARDED)
        case Fate.REDIRECT:
            return replace(start, state=State.REDIRECTED, successors=verdict.successors)
        case _:
            assert_never(verdict.fate)


def _failed(recipient: NewRecipient, status: str, reply: str) -> NewRecipient:
    return replace(recipient, state=State.FAILED, status=status, reply=reply)


def _put(
    buckets: dict[tuple[NextHop, int], list[NewRecipient]],
    examination: LocalRecipient | RemoteRecipient,
    recipient: NewRecipient,
    *,
    content: int,
) -> None:
    next_hop = LOCAL if isinstance(examination, LocalRecipient) else examination.next_hop
    buckets.setdefault((next_hop, content), []).append(recipient)
