"""The fallback of a route: mail that no host of the first next hop has answered for its time."""

import asyncio
from dataclasses import replace as replace_route
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from relay.base.advanceable_clock import AdvanceableClock
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import Peer, SessionFailure, SmtpStage
from relay.base.message.tls_policy import REQUIRETLS, TlsDecision, TlsPolicy
from relay.base.settings.tree import Route, RouteAuth
from relay.delivery.attempt_result import Lookup, fallback_us
from relay.delivery.graph import connection as graph_connection
from relay.delivery.smtp.connect import ConnectError, connect
from relay.store.spool.types import NEXT_ATTEMPT, CloudRequest, EntryExtra
from relay.transport.routing.mx_hosts import Host, Hosts
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import Credentials, Fallback
from tests.support.claims import SECOND_US, a_claim
from tests.support.fake_graph import FakeGraph, Item
from tests.support.journeys import states
from tests.support.remote_mx import DROP, RemoteMx
from tests.support.tables import each_row

ROUTE = Route("*", "smtp://first.test:25", name="hub", fallback="smtp://other.test:25")
FIRST, THERE = (NextHop.parse(f"smtp://{one}.test:25 hub") for one in ("first", "other"))
BOX, DUE = "p@b.test", ("size", "time", "reload")
MADE = CloudRequest(BOX, "<o@b.test>", (1,), 5, draft="d", created="never")
ASKED = replace(MADE, sent_us=6)
NOBODY: Any = SimpleNamespace(by_address=lambda _address: None)


@each_row(
    "by, demand, unanswered_s, before_s, expected_s",
    [
        ("configuration", "", 10, 0, 1790),
        ("route hub", "", 0, 700, 700),  # as before a restart
        ("configuration", "", None, 700, 0),  # there was a reply
        ("dane", "", 10, 0, 0),
        ("mta-sts", "", 10, 0, 0),
        (None, "", 10, 0, 0),  # what the domain publishes is not known
        ("configuration", REQUIRETLS, 10, 0, 0),
    ],
)
def test_only_silence_leads_to_the_fallback(by, demand, unanswered_s, before_s, expected_s):
    claim = a_claim(extra=EntryExtra(fallback_us=before_s * SECOND_US))
    envelope = replace(claim.message.envelope, tls=demand)
    claim = replace(claim, message=replace(claim.message, envelope=envelope))
    lookup = Lookup(tls={"mx.a.test": TlsDecision(TlsPolicy("verify"), by=by)} if by else {})
    times = {"now_us": 0, "unanswered_s": unanswered_s}
    for requiretls, expected in (("", expected_s), ("verified", expected_s or 1790 * bool(demand))):
        route = replace_route(ROUTE, tls="verify", requiretls=requiretls)
        ways = map(RouteTable([route], [], NOBODY).fallback_for, (FIRST, THERE))
        found = [fallback_us(claim, way, lookup, **times) for way in ways]
        assert found == [expected * SECOND_US, NEXT_ATTEMPT]


def test_the_fallback_has_the_tls_of_its_route_and_no_login(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    route = replace_route(ROUTE, auth=RouteAuth("me", tmp_path / "password"), max_rate="1/1.0")
    table = RouteTable([route], [], NOBODY)
    first, other = map(table.options_for, (FIRST, THERE))
    assert first.login is not None
    assert (other, other.tls.level) == (replace(first, login=None), "verify")
    assert table.must_stay(THERE, chosen=True)
    without = RouteTable([replace_route(route, fallback="")], [], NOBODY)
    assert not without.must_stay(THERE, chosen=True)


class Routed(RouteTable):
    captured = ()

    def hop(self, address: str, _domain: str) -> str:
        return self.next_hop_for(address, "me@b.test").key

    async def resolve(self, hop: NextHop) -> Hosts:
        return Hosts((Host(hop.host, 0, (hop.host,), hop.port),))


@each_row("extra", [{"requests": (ASKED,)}, {"unanswered": ((1, 1),)}])
def test_what_graph_may_have_sent_is_not_due_at_the_fallback(extra):
    hop = NextHop.parse("graph://graph.test:443")
    claim = replace(a_claim(extra=EntryExtra(**extra)), next_hop=hop)
    lookup = Lookup(tls={"graph.test": TlsDecision(TlsPolicy("verify"), by="configuration")})
    assert fallback_us(claim, Fallback(THERE, 1), lookup, now_us=9, unanswered_s=1) == 0


async def test_half_an_hour_without_a_host_that_answers_over_a_restart(delivery) -> None:
    clock = delivery.clock = AdvanceableClock()
    delivery.retry_s, delivery.unreachable_s = (300.0, 3600.0), 30.0

    async def start() -> None:
        delivery.spool = None
        await delivery.start()
        delivery.spool.queue_admin.delivery = delivery.scheduler

    async def settled() -> None:
        scheduler, idle = delivery.scheduler, 0
        async with asyncio.timeout(120):
            while idle < 3:
                busy = scheduler.claims_in_progress or scheduler.is_scanning
                idle = 0 if busy or scheduler.recorder.unfinished else idle + 1
                await asyncio.sleep(0.01)

    ways = [RemoteMx(replies={"CONNECT": one}) for one in (DROP, ["220 once", DROP])]
    async with ways[0] as first, ways[1] as other:
        hops = [f"smtp://{one.host}:{one.port}" for one in (first, other)]
        route = Route("*", hops[0], name="hub", fallback=hops[1])
        delivery.table = Routed([route], [], NOBODY, tls="none")
        await start()
        queue_id = await delivery.send("x@a.test", expire_s=86_400)
        await clock.advance(600, settled)  # attempts now and after 5 minutes
        await delivery.stop()
        await start()
        await clock.advance(1140, settled)
        assert (first.sessions, other.sessions) == (2, 0)
        await clock.advance(120, settled)
        (recipient,) = (await delivery.done(queue_id)).recipients
        assert (first.sessions, other.sessions, str(recipient.state)) == (3, 1, "relayed")
        await delivery.send("x@a.test", expire_s=86_400)  # neither answers: the waits grow
        await clock.advance(4 * 3600, settled)
        assert other.sessions - 1 in range(4, 7)


DRAFT, SENT = Item(b"Message-ID: <o@b.test>\r\n\r\n"), Item(b"", "sentitems", is_draft=False)


@pytest.mark.parametrize("due", DUE)
@pytest.mark.parametrize(
    "row",
    [
        ({}, None, True, DUE, 0),
        ({"lost_posts": ((BOX, "<q@b.test>"),)}, None, True, DUE, 0),
        ({"requests": (MADE,)}, DRAFT, True, DUE, 0),
        ({"uploads": (MADE, replace(MADE, draft=""))}, DRAFT, True, DUE, 0),
        ({"requests": (ASKED,)}, DRAFT, True, (), 1),  # no answer to /send: it may have left
        ({"requests": (replace(ASKED, lost_us=7),)}, DRAFT, True, (), 1),
        ({"requests": (ASKED,)}, SENT, True, (), 0),
        ({}, None, False, ("size", "reload"), 1),
        ({"unanswered": ((1, 1),)}, None, False, (), 1),  # no answer to sendMail
        ({"unanswered": ((1, 1),)}, None, True, (), 1),
    ],
)
async def test_the_login_of_a_fallback_has_what_graph_has_not_sent(
    delivery, tmp_path, monkeypatch, row, due
) -> None:
    extra, item, confirm, goes, sends = row
    monkeypatch.setattr(graph_connection, "SENT_US", 0)
    (tmp_path / "password").write_text("secret\n")
    refusals = {"size": 0, "time": 2, "reload": 1000}[due]

    async def get_token(login, use, _refused) -> str:
        return "token" if (login, use) == (Credentials(BOX, oauth="o"), "graph") else "another"

    async def connect_to(target, *, ehlo_name, **given):
        nonlocal refusals
        if target.graph is None:
            return await connect(target, ehlo_name=ehlo_name, **given)
        if refusals := max(refusals - 1, 0):
            lost = SessionFailure.LOST, "down"
            raise ConnectError.broken(SmtpStage.CONNECT, *lost, peer=Peer(target.host))
        return await graph_connection.open_graph(target, get_token=get_token, proxy=None, **given)

    delivery.connect = connect_to
    async with RemoteMx(users={"me": "secret"}) as host, FakeGraph(lambda: 10) as graph:
        graph.items |= {"d": replace_route(item)} if item else {}
        cloud = Route("*", f"graph://127.0.0.1:{graph.port}", RouteAuth(BOX, oauth="o"), name="g")
        cloud = replace_route(cloud, confirm=confirm, mime_max=None if due == "time" else 5)
        there, login = f"smtp://127.0.0.1:{host.port}", RouteAuth("me", tmp_path / "password")
        whole = replace_route(cloud, fallback=there, fallback_auth=login)
        delivery.table = Routed([cloud if due == "reload" else whole], [], NOBODY, tls="none")
        await delivery.start()
        delivery.spool.queue_admin.delivery = delivery.scheduler
        known = EntryExtra(**extra, fallback_us=2 * (due == "time"))
        queue_id = await delivery.send("x@a.test", extra=known)
        if due == "reload":
            await delivery.changed.get()
            delivery.table.use(Routed([whole], [], NOBODY, tls="none"))
            refusals = 0
        journey = await delivery.done(queue_id)
    leaves, fails = due in goes, not confirm and "unanswered" in extra and due != "time"
    assert states(journey) == {"x@a.test": "failed" if fails else "relayed"}
    assert (len(host.envelopes), len(graph.sent)) == (leaves, 0 if leaves or fails else sends)
    assert [*host.logins.values()] == ["me"] * leaves
    assert due == "time" or not graph.in_folder("drafts")
    moved = [step.detail["why"] for step in journey.steps if "to" in step.detail]
    why = "no host of {} answered" if due == "time" else "it is too large for {}"
    assert moved == [why.format(cloud.next_hop)] * leaves
