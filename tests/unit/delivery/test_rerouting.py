"""Claims whose route no longer sends them to their next hop."""

from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop
from msgspec.structs import replace

from relay.base.message.envelope import Envelope, ForwardPath, MessageExtra
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import Failed, Outcome
from relay.base.settings.tree import OwnDomain, Route, RouteAuth
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.attempt_result import AttemptTime, result_of_attempt
from relay.delivery.rerouting import ClaimRerouter
from relay.delivery.retry import RetrySchedule
from relay.formats.dsn import ReportKind
from relay.store.spool.types import Claim, CloudRequest, EntryExtra
from relay.transport.routing.route_table import RouteTable
from tests.support.claims import a_claim
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row


class Directory:
    def by_address(self, _address: str) -> None:
        return None


def not_run(work: Coroutine[Any, Any, Any]) -> object:
    work.close()
    return object()


TOKEN = RouteAuth("p@s.test", oauth="o")
SENT = CloudRequest("P@s.test", "<1@s.test>", (1,), 5, draft="d", sent_us=6)
AWAITED = {"requests": (SENT,), "fallback_us": 1}
DRAFT = {"requests": (replace(SENT, sent_us=0),), "fallback_us": 1}
CLOUD, SMTP = "graph://c.test:443", "smtp://h.test:25"
OF_SENDER = RouteAuth("sender", oauth="o")
REPORTS = "graph://c.test:443 reports"
OF_RECIPIENT = "graph://c.test:443 mine\t1@o.test"
OWN = "smtps://w.test:465 own\ta@x.test"
ROUTES = [
    Route("new.test", "capture"),
    Route("*", "smtp://h.test:25", name="of-s", sender="*@s.test"),
    Route("a.test", "smtp://h.test:25", name="of-a"),
    Route("b.test", "smtp://h.test:25", name="of-b"),
    Route("m.test", "mx", name="by-mx"),
    Route("held.test", "hold", name="brake"),
    Route("g.test", "graph://c.test:443", TOKEN, name="all"),
    Route(
        "x.test",
        "smtps://w.test:465",
        RouteAuth("sender", oauth="o"),
        sender="*@x.test",
        name="own",
    ),
    Route("here.test", "local"),
    Route("r.test", CLOUD, TOKEN, name="reports", reports=True, mime_max=5, fallback=SMTP),
    Route("*", CLOUD, OF_SENDER, name="mine", sender="*@o.test", reports=True),
]
REPORT = Envelope(""), MessageExtra(of_trusted=True)


@each_row(
    "address, key, extra, taken",
    [
        ("1@a.test", "smtp://h.test:25 of-a", {}, False),
        ("1@a.test", "smtp://h.test:25 of-b", {}, True),  # another domain
        ("1@a.test", "smtp://h.test:25 of-b", {"chosen": True}, False),
        ("1@a.test", "smtp://h.test:25 of-s", {}, True),  # another sender
        ("1@a.test", "smtp://h.test:26 of-a", {}, True),  # another host
        ("1@a.test", "smtp://h.test:25 gone", {"chosen": True}, True),
        ("1@a.test", "smtp://i.test:25 of-a", {"chosen": True}, True),
        ("1@a.test", "smtp://i.test:25", {"chosen": True}, False),
        ("1@a.test", "smtp://i.test:25 rule", {"chosen": True}, False),
        ("1@a.test", "smtp://h.test:25", {}, True),  # of an older spool
        ("1@a.test", "mx:a.test", {}, True),  # there is a route now
        ("1@a.test", "mx:a.test", {"chosen": True}, False),
        ("1@other.test", "mx:other.test", {}, False),
        ("1@m.test", "mx:m.test", {}, True),  # by the TLS level of a route now
        ("1@m.test", "mx:m.test by-mx", {}, False),
        ("1@held.test", "mx:held.test", {}, True),
        ("1@held.test", "mx:held.test", {"released": True}, False),
        ("1@held.test", "mx:held.test", {"chosen": True}, False),
        ("1@new.test", "capture", {}, False),
        ("1@a.test", "local", {}, True),  # its domain is local no longer
        ("1@a.test", "local", {"chosen": True}, False),
        ("1@g.test", "graph://c.test:443 all", {}, False),
        ("1@g.test", "graph://c.test:443 all", AWAITED, False),
        ("1@a.test", "graph://c.test:443 all", AWAITED, False),  # where it was asked for
        ("1@a.test", "graph://c.test:443 all", DRAFT, True),  # a draft binds it to nothing
        ("1@x.test", OWN, {}, False),
        ("1@x.test", OWN, {"chosen": True}, False),
        ("1@x.test", OWN, {"sender": "SRS0=a@s.test"}, True),  # the address in MAIL
        ("1@x.test", OWN, {"sender": "SRS0=a@s.test", "chosen": True}, True),
        ("1@x.test", f"{OWN}.org", {"chosen": True}, True),
        ("1@r.test", REPORTS, {"report": REPORT}, False),  # too large, and in no fallback
        ("1@r.test", REPORTS, {"report": REPORT, "fallback_us": 1}, False),
        ("1@r.test", REPORTS, {"report": (Envelope(""), MessageExtra())}, True),
        ("1@r.test", "mx:r.test", {"report": REPORT}, True),
        ("1@g.test", "graph://c.test:443 all", {"report": REPORT}, True),  # its key is gone
        ("1@g.test", "graph://c.test:443 all", {"report": REPORT, "chosen": True}, True),
        ("1@g.test", REPORTS, {"report": REPORT, "chosen": True}, False),
        ("1@o.test", OF_RECIPIENT, {"report": REPORT}, False),
        ("1@o.test", OF_RECIPIENT, {"report": REPORT, "chosen": True}, False),
    ],
)
def test_what_waits_is_where_the_routes_of_now_send_it(address, key, extra, taken):
    rerouter = ClaimRerouter(
        SimpleNamespace(begin=not_run, claims=ClaimsInMemory()),
        table=RouteTable(ROUTES, [], Directory()),
        admin=SimpleNamespace(),
        clock=ManualClock(),
    )
    envelope, of_message = extra.get("report", (Envelope("a@x.test"), MessageExtra()))
    of_entry = EntryExtra(**{name: value for name, value in extra.items() if name != "report"})
    claim = a_claim(next_hop=NextHop.parse(key), epoch=2, extra=of_entry, retry_us=5)
    message = replace(claim.message, envelope=envelope, extra=of_message)
    claim = replace(claim, message=message)
    (one,) = claim.recipients
    claim = replace(claim, recipients=(replace(one, path=ForwardPath(address)),))
    assert rerouter.takes(claim) is taken
    assert bool(rerouter.ready) is taken


def test_an_address_that_became_invalid_ends_and_the_others_of_its_entry_are_due(tmp_path: Path):
    """A reroute would change nothing: the others are at their next hop already."""
    (tmp_path / "listed").write_text("1@a.test\n")
    recorded: dict[int, Outcome] = {}

    async def record(_claim: Claim, outcomes: Mapping[int, Outcome], **_reached: bool) -> None:
        recorded.update(outcomes)

    recorder = SimpleNamespace(begin=uvloop.run, record=record)
    table = RouteTable([], [OwnDomain("a.test", f"file:{tmp_path}/listed")], Directory())
    rerouter = ClaimRerouter(recorder, table=table, admin=SimpleNamespace(), clock=ManualClock())
    assert not rerouter.takes(a_claim(count=1, epoch=2))
    claim = a_claim(count=2, epoch=2, cause="mailbox", cause_attempts=3)
    assert rerouter.takes(claim)
    assert not rerouter.ready
    assert {number: type(outcome) for number, outcome in recorded.items()} == {2: Failed}
    assert recorded[2].evidence.status == "5.1.1"
    result = result_of_attempt(
        claim,
        recorded,
        time=AttemptTime(now_us=5, at_us=5),
        schedule=RetrySchedule((60.0,), lambda: 0.5),
    )
    assert [one.path.address for one in result.reported[ReportKind.FAILED]] == ["2@a.test"]
    assert result.commit.waiting is not None
    assert (result.commit.waiting.due_us, result.commit.waiting.cause_attempts) == (5, 3)


def test_where_its_route_is_gone_the_queue_says_that_an_answer_is_awaited() -> None:
    told: list[str] = []

    async def record(_claim: Claim, outcomes: Mapping[int, Outcome], **_reached: bool) -> None:
        told.append(outcomes[1].evidence.reply)

    for auth in (None, RouteAuth("q@s.test", oauth="o")):
        table = RouteTable(
            [Route("a.test", "graph://c.test:443", auth, name="big")], [], Directory()
        )
        recorder: Any = SimpleNamespace(begin=uvloop.run, record=record)
        rerouter = ClaimRerouter(
            recorder, table=table, admin=SimpleNamespace(), clock=ManualClock()
        )
        hop = NextHop.parse("graph://c.test:443 big")
        assert rerouter.takes(a_claim(next_hop=hop, extra=EntryExtra(**AWAITED)))
        assert "the route big does not log in there as p@s.test any more" in told.pop()
