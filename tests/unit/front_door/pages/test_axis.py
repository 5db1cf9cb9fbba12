"""The axis of a journey: what is drawn of recorded attempts, and how large the drawing is."""

import re
from types import SimpleNamespace

from relay.base.clock import rfc3339
from relay.front_door.pages.axis import axis_of
from relay.front_door.pages.site import _environment
from relay.store.journeys.document import Attempt, Durations, Journey, JourneyStep, Recipient
from tests.support.tables import each_row

BEGIN_US, DAY_S, BUSY = 1_790_000_000_000_000, 86400.0, "451 4.3.0 busy"


def at(seconds: float) -> str:
    return rfc3339(BEGIN_US + round(seconds * 1e6))


def tried(end_s: float, outcome: str, took_s: float = 0, reply: str = BUSY, host: str = "mx1"):
    took = Durations(total=1000 * took_s) if took_s else None
    return Attempt(at(end_s), host, outcome, "", reply, "", durations=took)


def recipient(*attempts: Attempt, name: str = "joe", next_s: float = 0) -> Recipient:
    state, reply = (attempts[-1].outcome, attempts[-1].reply) if attempts else ("queued", "")
    due = at(next_s) if next_s else None
    return Recipient(f"{name}@a.test", state, None, due, reply=reply, attempts=attempts)


def drawn(*recipients: Recipient, told: dict | None = None):
    """The axis, its SVG, the table below, and how each attempt is drawn: class, bar and mark."""
    steps = [JourneyStep(5, "", at(0), {}), JourneyStep(7, "", at(9), told or {})]
    journey = Journey("a", "b", "c", "<m>", "s", "S", "queued", {}, tuple(steps), recipients)
    axis = axis_of(journey, recipients)
    template = _environment().get_template("_axis.html")
    view = SimpleNamespace(axis=axis)
    page = template.render(view=view, now=at(0), url=lambda path: path) if axis else ""
    svg, _, table = page.partition("</svg>\n</div>")
    groups = re.findall(r'<g class="state-(\w+)"><title>.*?</title>(.*?)</g>', svg)
    forms = [" ".join((kind, *re.findall(r"<(rect|path)", inside))) for kind, inside in groups]
    return axis, svg[svg.find('<svg id="axis"') :], table, forms


def test_a_bar_is_an_attempt_with_a_known_start_and_a_mark_one_without():
    waits = recipient(tried(2, "deferred", 1), tried(6, "deferred", 0.5), next_s=10)
    here = recipient(tried(3, "delivered", reply="250 ok"), name="ann")
    axis, svg, table, forms = drawn(waits, here)
    share = (axis.x(BEGIN_US + 10_000_000) - axis.x(BEGIN_US)) / 10  # percent of a second
    places = [place for lane in axis.lanes for place in axis.drawn(lane)]
    assert [round((x - 1) / share, 1) for _, x, _ in places] == [1, 5.5, 10, 3]
    assert [round(width / share, 1) for _, _, width in places[:2]] == [1, 0.5]
    assert forms == ["deferred rect", "deferred rect path", "due path", "delivered path"]
    assert "next +10\u202fs" in svg
    assert "broken" not in table
    assert table.count(f"deferred by mx1: {BUSY}") == table.count("took") == 2
    assert "delivered by mx1: 250 ok" in table


def test_an_axis_of_two_days_is_broken_and_says_so():
    ends = [60 * (2**number) for number in range(12)] + [DAY_S * 1.9, DAY_S * 2]
    _, _, table, forms = drawn(recipient(*(tried(end, "deferred", 0.1) for end in ends)))
    assert len(forms) == 14
    assert "The axis is broken" in table
    assert table.count("<li>") == 14


@each_row(
    "told, who",
    [
        ({"report_id": "r1", "to": "s@a", "kind": "failure"}, "report to s@a"),
        ({"received": "r1", "by": "remote", "kind": "failure"}, "report from a host"),
        ({"received": "r1", "kind": "complaint", "verdict": "pass"}, "report from a host"),
    ],
)
def test_a_report_is_a_lane_that_ends_where_it_was_made(told, who):
    axis, _, table, forms = drawn(recipient(tried(1, "failed", 0.9)), told=told)
    assert forms == ["failed rect path", "report path"]
    assert [x for _, x, _ in axis.drawn(axis.lanes[1])] == [axis.x(BEGIN_US + 9_000_000)] == [95]
    assert axis.lanes[1].who == who
    assert '<a href="messages/r1">report' in table


def test_a_thousand_recipients_take_few_lanes_and_octets():
    def to_three_hosts(number: int) -> Recipient:
        return recipient(tried(number / 300, "relayed", 0.09, "250", f"mx{number % 3}"))

    def waiting(number: int) -> Recipient:
        ends = (3600 * hour + number * 7.1 for hour in range(1, 20))
        attempts = [tried(end, "deferred", number / 10, f"{BUSY} {number % 23}") for end in ends]
        return recipient(*attempts, name=f"r{number}", next_s=DAY_S + number)

    for one, lanes in ((to_three_hosts, 3), (waiting, 11)):
        axis, svg, _, forms = drawn(*map(one, range(1000)))
        assert len(axis.lanes) == lanes
        assert len(forms) > 90
        assert len(svg.encode()) <= 40_000


def test_nothing_is_drawn_of_what_is_not_recorded():
    assert drawn(recipient())[0] is None
    axis, _, _, forms = drawn(recipient(), recipient(tried(0.5, "deferred", 2), name="early"))
    assert axis.origin == "first attempt"  # it began before the acceptance that is recorded
    assert forms == ["deferred rect path"]
