"""What an explanation says, by the parts that acceptance and delivery use."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.base.accounts.account import Account
from relay.base.clock import SystemClock, rfc3339
from relay.base.message.outcome import DeferralClass, Deferred, Evidence
from relay.base.message.srs import Srs
from relay.base.settings.tree import DnsSettings, Route, RouteAuth
from relay.delivery.retry import RetrySchedule
from relay.delivery.site import SiteState
from relay.delivery.site_limits import Rate, SiteOptions
from relay.front_door.api.dependencies import Question
from relay.operation.app.configuration import RoutePlace
from relay.operation.app.explain import Explainer
from relay.operation.cli.explain import explanation_lines
from relay.store.mailbox.usage import Room
from relay.transport.ingress.arrival import Preparation
from relay.transport.ingress.decision import DecidingStages
from relay.transport.ingress.forwarding import Forwarder
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.session_owner import RecipientChecks
from relay.transport.milter.filters import MilterSet
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import read_rules
from relay.transport.routing.resolver import Resolver
from relay.transport.routing.route_table import RouteTable
from tests.support.accounts import TokenAccounts
from tests.support.dns_server import DnsThread
from tests.support.tables import each_row

ALICE, SENDER = "alice@example.test", "sender@example.test"
PEOPLE = TokenAccounts({name: Account(f"{name}@example.test") for name in ("alice", "sender")})
ROUTES = (
    Route("closed.test", "reject:5.7.9 Not there"),
    Route("kept.test", "capture"),
    Route("own.test", "mx", tls="verify", name="checked", max_connections=2, max_rate="10/60.0"),
    Route("host.test", "smtps://localhost:4650", name="paid"),
    Route("cloud.test", "graph://localhost:4430", RouteAuth("p@a.test", oauth="o"), name="cloud"),
    Route(
        "told.test",
        "graph://localhost:4430",
        RouteAuth("p@a.test", oauth="o"),
        name="told",
        reports=True,
    ),
    Route("told.test", "reject:5.7.1 no way", sender="<>", name="others"),
    Route("six.test", "smtp://localhost:2525", source_address="::1"),
    Route("paper.test", "smtp://localhost:2526", sender="*@paper.test"),
)
ZONE = {
    "own.test": {"MX": ["20 b.own.test.", "10 a.own.test."]},
    "a.own.test": {"A": ["192.0.2.1", "192.0.2.2"]},
    "b.own.test": {"A": ["192.0.2.3"]},
    "back.test": {
        "MX": ["5 bare.test.", "10 a.own.test.", "20 relay.example.test.", "30 b.own.test."]
    },
    "bare.test": {},
    "loop.test": {"MX": ["5 relay.example.test."]},
    "null.test": {"MX": ["0 ."]},
    "later.test": "SERVFAIL",
}
RULES = """
[[rule]]
name = "no spam"
when = { subject = "*spam*" }
then = [ { reject = "5.7.1 No spam" } ]
[[rule]]
name = "moved"
when = { recipient = "moved@*" }
then = [ { redirect = ["x@own.test", "alice@example.test"] } ]
[[rule]]
name = "dropped"
when = { recipient = "dropped@*" }
then = [ { discard = true } ]
[[rule]]
name = "refused"
when = { recipient = "refused@*", direction = "outbound" }
unless = { sender = "boss@*" }
then = [ { reject = "5.7.2 Refused" } ]
"""
FAILURE = Deferred(Evidence("4.4.2", "no answer", host="a.own.test"), DeferralClass.CONNECT)


class Mailboxes:
    """Mailboxes with room for 1000 octets."""

    async def room(self, _account, size):
        return Room.FITS if size <= 1000 else Room.FULL


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsThread]:
    with DnsThread(ZONE) as dns:
        yield dns


@pytest.fixture
async def explainer(dns: DnsThread, tmp_path: Path):
    """An explainer of real parts, of a relay whose sites do nothing; with changes of its parts."""
    (tmp_path / "10.toml").write_text(RULES)
    rules, clock = RuleBook(read_rules(tmp_path)), SystemClock()
    resolver = Resolver(
        DnsSettings((dns.address,), timeout=60),
        clock=clock,
        rng=random.Random(1),
        hostname="relay.example.test",
    )

    def made(**changes) -> Explainer:
        parts = {
            "table": None,
            "rules": lambda: rules,
            "resolve": resolver.resolve,
            "schedule": RetrySchedule((60.0, 300.0), lambda: 0.0),
            "options": SiteOptions(connections_max=20, unreachable_s=30.0, rate=Rate(100, 60.0)),
            "accounts": PEOPLE,
            "places": {"checked": RoutePlace("relay.toml", 40)},
            "trusts": lambda ip: ip == "192.0.2.9",
            "state_of": lambda _hop, _hosts: SiteState(0, 0.0, None, 0.0),
        }
        parts |= changes
        accounts, given = parts.pop("accounts"), parts.pop("table")
        table = given or RouteTable(ROUTES, ["example.test"], accounts)
        forwarding = Forwarder(accounts, table, Srs(b"x" * 32), clock, RateLimits(clock))
        checks = RecipientChecks(forwarding, Mailboxes().room, rules=parts.pop("rules"))
        milters = MilterSet((), hostname="relay.example.test")
        preparation = Preparation(
            "relay.example.test", accounts, clock, False, milters, pytest.fail
        )
        stages = DecidingStages(preparation, forwarding)
        return Explainer(stages=stages, checks=checks, **parts)

    yield made
    await resolver.close()


async def test_what_goes_to_graph_names_the_mailbox_and_its_limits(explainer) -> None:
    found = await explainer().explain(Question("x@cloud.test", SENDER))
    assert found["limits"] == {"max_connections": 4, "max_rate": "30/60", "source_address": ""}
    assert '"cloud"; logs in as p@a.test' in str(explanation_lines(found))
    report = await explainer().explain(Question("x@cloud.test", ""))
    assert report["route"]["next_hop"] == "mx:cloud.test"


async def test_a_report_has_a_route_of_its_own(explainer) -> None:
    report = await explainer().explain(Question("x@told.test", ""))
    assert (report["route"]["name"], report["other_null"]["name"]) == ("told", "others")
    assert (report["state"], report["rules"]) == ("remote", [])
    assert any('others  from <>: "others"' in line for line in explanation_lines(report))
    other = await explainer().explain(Question("x@told.test", "", ip="192.0.2.9"))
    assert (other["state"], "other_null" in other) == ("rejected", False)


async def test_the_whole_document_of_a_remote_recipient(explainer) -> None:
    found = await explainer().explain(Question("bob@own.test", SENDER))
    rules = found.pop("rules")
    assert found == {
        "address": "bob@own.test",
        "from": SENDER,
        "state": "remote",
        "reply": "",
        "reason": "",
        "rule": "",
        "aliases": [],
        "route": {"name": "checked", "file": "relay.toml", "line": 40, "next_hop": "mx:own.test"},
        "mailbox": "",
        "hosts": [
            {
                "name": "a.own.test",
                "preference": 10,
                "addresses": found["hosts"][0]["addresses"],
                "skipped": "",
            },
            {"name": "b.own.test", "preference": 20, "addresses": ["192.0.2.3"], "skipped": ""},
        ],
        "hosts_more": 0,
        "tls": {"level": "verify", "policy": "route checked", "requiretls": False},
        "limits": {"max_connections": 2, "max_rate": "10/60", "source_address": ""},
        "site": {"connections": 0, "paused_until": None, "paused_by": "", "last_failure": None},
        "retry": [60.0, 300.0],
        "running": True,
    }
    assert sorted(found["hosts"][0]["addresses"]) == ["192.0.2.1", "192.0.2.2"]
    assert [(each["rule"], each["matched"]) for each in rules] == [
        ("no spam", None),
        ("moved", False),
        ("dropped", False),
        ("refused", False),
    ]
    assert list(rules[0]["conditions"]) == [{"condition": "subject", "value": "", "holds": None}]
    assert list(rules[3]["conditions"]) == [
        {"condition": "direction", "value": "outbound", "holds": True},
        {"condition": "recipient", "value": "bob@own.test", "holds": False},
        {"condition": "unless sender", "value": SENDER, "holds": False},
    ]
    assert list(rules[3]["actions"]) == [{"reject": {"status": "5.7.2", "text": "Refused"}}]


@each_row(
    "address, state, reply",
    [
        (ALICE, "local", ""),
        ("nobody@example.test", "invalid", "550 5.1.1 <nobody@example.test>: no such user here"),
        ("x@kept.test", "captured", ""),
        ("x@closed.test", "rejected", "550 5.7.9 <x@closed.test>: Not there"),
        ("refused@own.test", "rejected", "550 5.7.2 Refused"),
        ("dropped@own.test", "discarded", ""),
        ("x@gone.test", "invalid", "the domain gone.test does not exist (NXDOMAIN)"),
        ("x@null.test", "invalid", "null.test accepts no mail"),
        ("x@later.test", "remote", "the MX records of later.test could not be looked up"),
        ("x@[192.0.2.1]", "invalid", "550 5.1.2 <x@[192.0.2.1]>: no mail to address literals"),
        ("postmaster", "local", ""),
    ],
)
async def test_the_state_of_an_address(explainer, address, state, reply) -> None:
    found = await explainer().explain(Question(address, SENDER))
    assert found["state"] == state
    assert found["reply"].startswith(reply)
    assert bool(found["reply"]) is bool(reply)
    assert found["hosts"] == []


async def test_hosts_that_are_skipped_say_why(explainer) -> None:
    found = await explainer().explain(Question("x@back.test", SENDER))
    assert [(each["name"], each["skipped"]) for each in found["hosts"]] == [
        ("a.own.test", ""),
        ("bare.test", "no address"),
        ("relay.example.test", "this relay"),
        ("b.own.test", "not preferred to this relay"),
    ]
    looping = await explainer().explain(Question("x@loop.test", SENDER))
    assert (looping["state"], looping["hosts"][0]["skipped"]) == ("invalid", "this relay")
    assert "loops back to this relay" in looping["reply"]


async def test_the_state_of_the_site(explainer) -> None:
    asked = []

    def state_of(next_hop, hosts):
        asked.append((str(next_hop), [host.name for host in hosts.hosts]))
        return SiteState(connections=3, paused_s=10.0, failure=FAILURE, failed_s=5.0)

    before = rfc3339(SystemClock().time_us())
    found = await explainer(state_of=state_of).explain(Question("bob@own.test", SENDER))
    site = found["site"]
    assert asked == [("mx:own.test", ["a.own.test", "b.own.test"])]
    assert site["connections"] == 3
    assert site["last_failure"]["at"] < before < site["paused_until"]
    assert site["last_failure"] | {"at": ""} == {
        "at": "",
        "host": "a.own.test",
        "reply": "no answer",
    }
    at = site["last_failure"]["at"][:19].replace("T", " ")
    assert any(
        one.endswith(f", last failure {at} UTC: no answer") for one in explanation_lines(found)
    )
