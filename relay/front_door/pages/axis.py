"""The journey of a message as a picture: attempts on one axis of time, a lane for each recipient.

Pure. The template `_axis.html` makes SVG of it, and a table with a row for each lane. Only what is
recorded is drawn: a bar is an attempt whose total duration is known, a mark the end of an attempt
whose start is not. Positions are in percent of the width.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

from msgspec import Struct

from relay.base.clock import time_us_of
from relay.base.phrases import named
from relay.front_door.pages.charts import duration_text
from relay.store.journeys import details
from relay.store.journeys.document import Journey, JourneyStep, Recipient
from relay.store.journeys.wording import describe

_LANES_MAX, _REPORTS_MAX = 10, 6
_BARS_MAX = 130  # of all lanes with more than _FEW
_FEW, _TOUCH = 8, 0.8  # bars that are closer than _TOUCH look like one
_CHARACTERS = 0.75  # that have room in one percent of the width
_DUE = "due"


class Span(Struct, frozen=True, order=True):
    """An attempt, a report, or an attempt that is due."""

    start_us: int  # the end, if it is not known
    end_us: int
    at: str  # the end
    outcome: str
    said: str = ""

    @property
    def took(self) -> str:
        """The duration in words, "" if it is not known."""
        took_us = self.end_us - self.start_us
        return duration_text(took_us / 1e6) if took_us else ""


class Lane(Struct, frozen=True):
    """The attempts for recipients with one result, or a report, whose `path` is below messages/."""

    who: str
    state: str
    words: str
    spans: Sequence[Span]
    path: str = ""


class Axis(Struct, frozen=True):
    """Lanes, and the scale: a length for each time. `cuts_us` are in times that are left out."""

    lanes: Sequence[Lane]
    scale: Sequence[tuple[int, float]]
    cuts_us: Sequence[int]
    origin: str  # what is where it begins

    def x(self, at_us: int) -> float:
        """Return the position of a time."""
        place = bisect_right(self.scale, at_us, 1, len(self.scale) - 1, key=lambda knot: knot[0])
        (low_us, low), (high_us, high) = self.scale[place - 1], self.scale[place]
        length = low + (at_us - low_us) / (high_us - low_us) * (high - low)
        return round(1 + 94 * length / self.scale[-1][1], 2)

    def since(self, at_us: int) -> str:
        """Return the time since the beginning, in words."""
        return f"+{duration_text((at_us - self.scale[0][0]) / 1e6)}"

    def drawn(self, lane: Lane) -> Iterator[tuple[Span, float, float]]:
        """Yield the spans that can be told apart, each with its position and width."""
        crowded = sum(len(other.spans) > _FEW for other in self.lanes)
        apart = max(_TOUCH, 100 * crowded / _BARS_MAX) if len(lane.spans) > _FEW else _TOUCH
        x = end = -apart
        for span in lane.spans:
            begun, ended = self.x(span.start_us), self.x(span.end_us)
            if begun - x >= apart or ended - end >= apart or span is lane.spans[-1]:
                x, end = begun, ended
                yield span, x, round(max(end - x, 0.05), 2)

    def words(self, lane: Lane) -> tuple[float, str, str] | None:
        """Return where the words of a lane are: position, anchor, and what there is room for."""
        first = self.x(lane.spans[0].start_us) if lane.spans else 1.0
        last = max(
            (self.x(span.end_us) for span in lane.spans if span.outcome != _DUE), default=-2.0
        )
        edge = next((self.x(span.end_us) - 18 for span in lane.spans if span.outcome == _DUE), 98.0)
        room, x, anchor = max((edge - last - 3, last + 3, "start"), (first - 2, first - 2, "end"))
        most = int(room * _CHARACTERS)
        if most < min(len(lane.words), 16):
            return None
        return x, anchor, lane.words if len(lane.words) <= most else f"{lane.words[:most]}…"


def axis_of(journey: Journey, recipients: Sequence[Recipient]) -> Axis | None:
    """Return the axis, None if nothing is known to draw. `recipients` begin with the most
    important ones.
    """
    tries = [[*_spans(recipient)] for recipient in recipients]
    reports = [lane for step in journey.steps if step.step == 7 for lane in _report(step)]
    lanes = [*_lanes(recipients, tries), *reports[-_REPORTS_MAX:]]
    spans = sorted(chain.from_iterable(lane.spans for lane in lanes))
    if not spans:
        return None
    accepted = [_us(step.at) for step in journey.steps if step.step in (4, 5) and _us(step.at)]
    start, end = min([*accepted, spans[0].start_us]), max(span.end_us for span in spans)
    pairs = chain.from_iterable(map(pairwise, tries))
    waits = sorted({max(0, later.start_us - earlier.end_us) for earlier, later in pairs} - {0})
    # Where a quarter of them could not be seen, none is longer than four of the shortest.
    is_broken = waits and 100 * waits[len(waits) // 4] < end - start
    longest = 4.0 * waits[0] if is_broken else float("inf")
    scale, cuts = [(start, 0.0)], list[int]()
    for low, high in [*((span.start_us, span.end_us) for span in spans), (end, start + 1)]:
        if (gap := low - scale[-1][0]) > 0:
            scale.append((low, scale[-1][1] + min(gap, longest)))
            cuts += [low - gap // 2] if gap > longest else []
        if high > scale[-1][0]:
            scale.append((high, scale[-1][1] + high - scale[-1][0]))
    return Axis(lanes, scale, cuts, "accepted" if start in accepted else "first attempt")


def _spans(recipient: Recipient) -> Iterator[Span]:
    """Yield attempts, and the attempt that is due."""
    for tried in recipient.attempts:
        if not (end_us := _us(tried.at)):
            continue
        took_us = round(1000 * tried.durations.total) if tried.durations else 0
        said = f"{tried.outcome}{f' by {tried.host}' if tried.host else ''}: {tried.reply}"
        yield Span(end_us - took_us, end_us, tried.at, tried.outcome, said)
    if due_us := _us(due := recipient.next_attempt or ""):
        yield Span(due_us, due_us, due, _DUE)


def _us(at: str) -> int:
    """Return a recorded time; 0: it cannot be read, or there is none."""
    try:
        return time_us_of(at)
    except ValueError:
        return 0


def _words(recipient: Recipient) -> str:
    host = recipient.attempts[-1].host if recipient.attempts else ""
    if recipient.state == "relayed" and host:
        return f"relayed by {host}"
    is_own = recipient.state in ("delivered", "captured")
    return recipient.state if is_own else recipient.reply or recipient.state


def _lanes(recipients: Sequence[Recipient], tries: Sequence[Sequence[Span]]) -> Iterator[Lane]:
    """Yield a lane for each recipient; for many, one for those with the same result, and one for
    the rest in each state.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, recipient in enumerate(recipients):
        result = _words(recipient).replace(recipient.address, "")
        key = recipient.state, result if len(recipients) > _LANES_MAX else recipient.address
        if key not in groups and len(groups) >= _LANES_MAX:
            key = recipient.state, ""
        groups.setdefault(key, []).append(number)
    for (state, result), numbers in groups.items():
        first, more = recipients[numbers[0]], f" +{len(numbers) - 1}" if numbers[1:] else ""
        spans = {
            span.outcome == _DUE or (span.start_us, span.end_us, span.outcome): span
            for span in sorted(chain.from_iterable(map(tries.__getitem__, numbers)), reverse=True)
        }
        words = _words(first) if result else state
        yield Lane(first.address + more, state, words, sorted(spans.values()))


def _report(step: JourneyStep) -> Iterator[Lane]:
    """Yield the lane of a report or complaint: it ends where it was made or received."""
    if not (at_us := _us(step.at)):
        return
    match step.read():
        case details.ReportDetail() as made if made.to:
            words = ": ".join(filter(None, (made.kind, named(made.recipients))))
            who, path = f"report to {made.to}", made.report_id
        case details.ClaimDetail() | details.ComplaintDetail() as told:
            words = next(describe(step.step, step.detail), "")
            who, path = f"report from {told.source.name}", told.received
        case _:
            return
    yield Lane(who, "", words, (Span(at_us, at_us, step.at, "report", words),), path)
