"""The evidence of an attempt: TLS policy and verification, durations, the MX answer."""

import socket

import msgspec
import pytest
from msgspec.structs import replace

from relay.base.message.outcome import Evidence, Relayed, SessionEvidence
from relay.base.message.tls_policy import TlsDecision, TlsPolicy
from relay.base.settings.tree import Route, RouteAuth
from relay.delivery.attempt_result import Lookup
from relay.store.journeys.document import Durations, MxRecord
from relay.transport.routing.mx_hosts import Exchange, Hosts, MxAnswer, NoAddress
from relay.transport.routing.route_table import RouteTable
from tests.support.claims import a_claim
from tests.support.remote_mx import RemoteMx
from tests.unit.delivery.test_attempt_result import concluded
from tests.unit.transport.routing.test_route_table import Accounts


async def attempt_of(delivery, address, *, final=True):
    """Send to the address; return the first attempt, once it is recorded."""
    queue_id = await delivery.send(address)
    while True:
        journey = await (delivery.done(queue_id) if final else delivery.spool.journey(queue_id))
        if attempts := journey.recipients[0].attempts:
            return attempts[0]
        await delivery.changed.get()


async def test_a_first_attempt_has_the_durations_of_its_connection_and_the_next_one_none(
    delivery, authority
) -> None:
    tls = authority.issue("DNS:mx0.a.test").server_context()
    delivery.table.tls["a.test"] = TlsPolicy("opportunistic")
    delivery.idle_s = 60.0
    async with delivery.host(tls=tls) as mx:
        first = await attempt_of(delivery, "x@a.test")
        second = await attempt_of(delivery, "y@a.test")
        assert mx.sessions == 1
    assert first.tls == second.tls == "TLSv1.3"
    assert first.verified == second.verified == "none"
    assert first.policy == second.policy == "configuration: opportunistic"
    spent = first.durations
    assert spent.connect > 0
    assert spent.tls > 0
    assert spent.total >= round(spent.dns + spent.connect + spent.tls, 1) - 0.1
    assert second.durations == Durations(total=second.durations.total)
    assert second.durations.total > 0


BY_LOGIN = {"next_hop": "smtp://mail.test:25", "login": True}
SMTPS, LMTP = {"next_hop": "smtps://mail.test:25"}, {"next_hop": "lmtp://mail.test:24"}


@pytest.mark.parametrize(
    ("configured", "route", "host", "expected"),
    [
        ("opportunistic", None, {}, "relayed TLS none configuration: opportunistic"),
        ("opportunistic", None, {"offer": False}, "relayed - none configuration: opportunistic"),
        ("opportunistic", None, {"breaks": True}, "relayed - none configuration: opportunistic"),
        ("none", None, {}, "relayed - none configuration: none"),
        ("required", None, {}, "relayed TLS none configuration: required"),
        ("required", None, {"offer": False}, "deferred - none configuration: required"),
        ("required", None, {"breaks": True}, "deferred - none configuration: required"),
        ("required", {"tls": "none"}, {}, "relayed - none route R: none"),
        ("none", {"tls": "verify"}, {}, "relayed TLS name route R: verify"),
        ("none", {"tls": "verify"}, {"name": "other.test"}, "deferred TLS chain route R: verify"),
        ("none", {"tls": "verify"}, {"offer": False}, "deferred - none route R: verify"),
        ("none", {"tls": "required"}, {"name": "other.test"}, "relayed TLS none route R: required"),
        ("required", {"max_connections": 5}, {}, "relayed TLS none configuration: required"),
        ("none", SMTPS, {"implicit": True}, "relayed TLS none route R: required"),
        (
            "none",
            SMTPS | {"tls": "opportunistic"},
            {"offer": False},
            "deferred - none route R: required",
        ),
        ("none", SMTPS | {"tls": "verify"}, {"implicit": True}, "relayed TLS name route R: verify"),
        ("none", BY_LOGIN, {}, "relayed TLS name route R: verify"),
        ("none", BY_LOGIN | {"tls": "opportunistic"}, {}, "relayed TLS none route R: required"),
        (
            "none",
            BY_LOGIN | {"tls": "opportunistic"},
            {"breaks": True},
            "deferred - none route R: required",
        ),
        ("opportunistic", LMTP, {"lmtp": True}, "delivered TLS none configuration: opportunistic"),
        ("none", LMTP | {"tls": "verify"}, {"lmtp": True}, "delivered TLS name route R: verify"),
        ("required", {"next_hop": "capture"}, {}, "captured - none "),
    ],
)
async def test_what_an_attempt_says_of_tls(
    delivery, authority, tmp_path, configured, route, host, expected
) -> None:
    """As the route table and the decision on each host have it."""
    name = "mail.test" if "://" in str(route) else "mx0.a.test"
    tls = authority.issue(f"DNS:{host.get('name', name)}").server_context()
    async with RemoteMx(
        tls=tls if host.get("offer", True) else None,
        replies={"STARTTLS": "454 4.7.0 not now"} if host.get("breaks") else {},
        implicit_tls=host.get("implicit", False),
        lmtp=host.get("lmtp", False),
        users={"u": "secret"} if route and "login" in route else {},
    ) as mx:
        delivery.table.at("a.test", mx)
        [found] = delivery.table.hosts["a.test"].hosts
        delivery.table.hosts["mail.test"] = Hosts((replace(found, name="mail.test"),))
        table = RouteTable(
            routes(route, authority.certificate, tmp_path), [], Accounts(), tls=configured
        )
        delivery.table.options_for = table.options_for
        delivery.table.tls_demanded_by = table.tls_demanded_by
        delivery.table.hop = lambda *_: table.next_hop_for("x@a.test").key
        delivery.retry_s, delivery.delivers_captured = (600.0,), True
        await delivery.start()
        attempt = await attempt_of(delivery, "x@a.test", final=False)
    encrypted = "TLS" if attempt.tls else "-"
    assert f"{attempt.outcome} {encrypted} {attempt.verified} {attempt.policy}" == expected


def routes(route, ca, folder) -> list[Route]:
    """The route of a.test; where it verifies, the CA is the test's."""
    if route is None:
        return []
    fields = {"next_hop": "mx", "name": "R", **route}
    if fields.pop("login", False):
        (folder / "password").write_text("secret")
        fields["auth"] = RouteAuth("u", folder / "password")
    if fields.get("tls") == "verify" or ("auth" in fields and "tls" not in fields):
        fields["ca"] = ca
    return [Route("a.test", **fields)]


async def test_mail_that_shares_a_failure_has_its_policy_and_no_durations(delivery) -> None:
    delivery.retry_s, delivery.unreachable_s = (600.0,), 300.0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = RemoteMx(port=closed.getsockname()[1])
        delivery.table.at("a.test", nobody)
        await delivery.start()
        own = await attempt_of(delivery, "x@a.test", final=False)
        shared = await attempt_of(delivery, "y@a.test", final=False)
    assert own.reply == shared.reply
    assert own.durations is not None
    assert shared.durations is None
    assert own.policy == shared.policy == "configuration: none"


@pytest.mark.parametrize(
    ("by", "level", "what"),
    [("mta-sts", "verify", "MTA-STS policy"), ("dane", "dane", "TLSA records")],
)
def test_a_session_from_before_the_level_changed_is_not_demanded_by_who_demands_it_now(
    by, level, what
) -> None:
    lookup = Lookup(tls={"mx.a.test": TlsDecision(TlsPolicy(level), by)})
    found = [lookup.policy("mx.a.test", SessionEvidence(level=one)) for one in ("none", level)]
    before = f"configuration: none; looked up before the {what}"
    assert found == [before, f"{by}: {level}"]


async def test_the_mx_answer_is_recorded_with_the_hosts_that_are_skipped(delivery) -> None:
    answer = MxAnswer((Exchange(0, "mx0.a.test"), Exchange(20, "b.a.test", "no address")), 3)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.table.hosts["a.test"] = replace(delivery.table.hosts["a.test"], mx=answer)
        await delivery.start()
        attempt = await attempt_of(delivery, "x@a.test")
    assert attempt.mx == (MxRecord(0, "mx0.a.test"), MxRecord(20, "b.a.test", "no address"))
    assert attempt.mx_more == 3


async def test_a_domain_without_a_usable_host_is_recorded_with_its_mx_answer(delivery) -> None:
    answer = MxAnswer((Exchange(10, "gone.test", "no address"),))
    delivery.table.hosts["a.test"] = NoAddress("a.test", answer)
    await delivery.start()
    attempt = await attempt_of(delivery, "x@a.test")
    assert (attempt.status, attempt.host, attempt.policy) == ("5.4.4", "", "")
    assert attempt.mx == (MxRecord(10, "gone.test", "no address"),)
    assert attempt.durations.total == attempt.durations.dns


async def test_hosts_of_the_other_family_than_source_address_are_recorded_as_skipped(delivery):
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx, mx)
        four, six = delivery.table.hosts["a.test"].hosts
        six = replace(six, addresses=("::1",))
        answer = MxAnswer((Exchange(0, four.name), Exchange(1, six.name)))
        delivery.table.hosts["a.test"] = Hosts((four, six), answer)
        delivery.table.limits["a.test"] = {"source_address": "127.0.0.1"}
        await delivery.start()
        attempt = await attempt_of(delivery, "x@a.test")
    skipped = [one.skipped for one in attempt.mx]
    assert skipped == ["", "no address of the family of source_address"]


def test_ordinary_mail_on_an_open_connection_records_only_how_long_it_took() -> None:
    peer = Evidence(
        "2.0.0", "250 ok", host="mx.a.test", session=SessionEvidence("none", "opportunistic")
    )
    outcomes = {1: Relayed(peer)}
    [before] = concluded(a_claim(count=1), outcomes).commit.events
    [event] = concluded(a_claim(count=1), outcomes, lookup=Lookup(), took_s=0.01234).commit.events
    assert event.detail == replace(before.detail, durations={"total": 12.3})
    more = len(msgspec.json.encode(event.detail)) - len(msgspec.json.encode(before.detail))
    assert more == len(',"durations":{"total":12.3}')
