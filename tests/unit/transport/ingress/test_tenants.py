"""What acceptance does with mail of several tenants, over SMTP."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from relay.base.accounts.account import Account
from relay.base.message.content import read_all
from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.lifecycle import RecipientState, hold_text
from relay.store.journeys.details import read_detail
from relay.store.journeys.events import Step
from relay.store.journeys.sender_view import sender_detail
from relay.store.spool.types import HoldsFullError, PriorityLevel
from relay.transport.ingress.session_refusals import reason_of
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_book import RuleBook, TenantRules
from relay.transport.policy.rule_files import read_rules
from relay.transport.refusals.refusal import RefusalReason
from relay.transport.routing.route_table import Route, RouteTable
from tests.support.ingress import Client, FakeAccounts, MemorySpool, Relay
from tests.support.tables import each_row
from tests.unit.transport.ingress.test_acceptance import UNTRUSTED

ALICE, BOB, GUS = "alice@acme.test", "bob@globex.test", "gus@globex.test"
CONTENT = b"Subject: hello\r\n\r\nx\r\n"
GONE = "451 4.3.0 The mail rules of acme.test are not available, try again later"


class People(FakeAccounts):
    def by_address(self, address):
        return Account(address) if address in (ALICE, "amy@acme.test", BOB, GUS) else None


class FullForAcme(MemorySpool):
    async def accept(self, message, **options):
        if any(rule.startswith("acme/") for rule in message.held_by_rules):
            raise HoldsFullError("acme")
        return await super().accept(message, **options)


class TwoTenants(Relay):
    @property
    def router(self):
        return RouteTable((), ["acme.test", "globex.test"], self.accounts)


def relay_with(folder, then: str | None, **parts) -> Relay:
    """A relay where acme has one rule, or no rules that can be used."""
    return relay_for(folder, [("*", then)] if then else [], **parts)


def relay_for(folder, rules: list[tuple[str, str]], **parts) -> Relay:
    """A relay where acme has rules: for whom, and what they do; without any, none can be used."""
    (folder / "a.toml").write_text(
        "".join(
            f"[[rule]]\nname = 'acme/r{number or ''}'\nwhen = {{ recipient = '{to}' }}\nthen = [ {then} ]\n"
            for number, (to, then) in enumerate(rules)
        )
    )
    rules = {"acme": read_rules(folder) if rules else None, "globex": None}
    (folder / "a.toml").unlink()
    rules["globex"] = read_rules(folder)
    tenants = {name: TenantRules(name, frozenset([f"{name}.test"]), rules[name]) for name in rules}
    return TwoTenants(accounts=People(), rules=RuleBook(read_rules(folder), tenants), **parts)


async def sent(relay: Relay, *to: str, **listener) -> str:
    server = relay.server(**listener)
    await server.start()
    client = await Client.connect(server.address)
    try:
        await client.reply()
        lines = ("EHLO c.test", "MAIL FROM:<x@far.test>", *(f"RCPT TO:<{one}>" for one in to))
        assert {reply[:3] for reply in await client.say_all(*lines)} == {"250"}
        await client.say("DATA")
        return await client.say("Subject: hello\r\n\r\nx\r\n.")
    finally:
        client.writer.close()
        await server.drain(0.2)


async def accepted(relay: Relay, *to: str) -> str:
    """As sent(), without the reply to RCPT: a submission comes so, or a set is lost meanwhile."""
    acceptance, paths = relay.acceptance(), [ForwardPath(one) for one in to]
    try:
        found = await acceptance.accept(Envelope("x@far.test"), paths, CONTENT, origin=UNTRUSTED)
    finally:
        acceptance.close()
    return found.reply


def fates(relay: Relay) -> dict[str, str]:
    [message] = relay.spool.accepted
    found = {each.path.address: f"{each.state} {each.reply}" for each in message.final_recipients}
    return found | {
        each.path.address: entry.extra.reason or "delivered"
        for entry in message.entries
        for each in entry.recipients
    }


NONE_LEFT = "{ rate_limit = { rate = '1/1h', per = 'client', text = '4.7.1 much' } }"
FULL = (
    f"{RecipientState.FAILED} 550 5.3.1 The rules of its domain hold as many messages as they may"
)
CASES = {
    "defer": ("{ defer = '4.7.1 later' }", "deferred by acme/r: later", "451 4.7.1 later"),
    "limit": (NONE_LEFT, "deferred by acme/r: much", "451 4.7.1 much"),
    "none": (None, f"deferred by acme/*: {GONE[10:]}", GONE),
    "hold": ("{ hold = 'a look' }", "a look", "250 2.0.0"),
}


@pytest.mark.parametrize(("then", "reason", "reply"), CASES.values(), ids=CASES)
async def test_the_copies_of_others_never_wait(tmp_path, then, reason, reply) -> None:
    relay = relay_with(tmp_path, then)
    others = [BOB] if then != NONE_LEFT else [BOB, "amy@acme.test"]
    send = sent if then else accepted
    assert (await send(relay, ALICE, *others)).startswith("250 2.0.0")
    expected = {ALICE: reason, BOB: "delivered"}
    assert fates(relay) == expected | ({"amy@acme.test": reason} if others[1:] else {})
    alone = relay_with(tmp_path, then)
    mine = [ALICE, "amy@acme.test"]
    assert (await send(alone, *mine)).startswith(reply)


@pytest.mark.parametrize("then", [CASES["defer"][0], CASES["limit"][0], CASES["hold"][0], None])
async def test_copies_that_may_not_even_be_held_are_rejected(tmp_path, then) -> None:
    relay = relay_with(tmp_path, then, spool=FullForAcme())
    send = sent if then else accepted
    assert (await send(relay, ALICE, "amy@acme.test", BOB)).startswith("250 2.0.0")
    assert fates(relay) == {ALICE: FULL, "amy@acme.test": FULL, BOB: "delivered"}
    only = relay_with(tmp_path, CASES["hold"][0], spool=FullForAcme())
    assert (await sent(only, ALICE)).startswith("452 4.3.1")


async def test_a_message_and_its_journey_name_the_sets_and_keep_the_priority(tmp_path) -> None:
    urgent = "{ set_header = { name = 'Priority', value = 'urgent' } }"
    relay = relay_with(tmp_path, urgent)
    assert (await sent(relay, ALICE, BOB, trusted_networks=("127.0.0.1",))).startswith("250")
    [message] = relay.spool.accepted
    levels = {
        each.path.address: (message.priority_of(entry), message.level_of(entry))
        for entry in message.entries
        for each in entry.recipients
    }
    assert levels == {
        ALICE: (PriorityLevel.HIGH, PriorityLevel.HIGH),
        BOB: (PriorityLevel.NORMAL, PriorityLevel.NORMAL),
    }
    detail = message.events[0].detail
    assert detail.used.tenants.keys() == {"acme", "globex"}
    assert detail.rules[0].rule == "acme/r"


def test_a_refusal_without_rules_is_no_pressure() -> None:
    assert reason_of("RCPT", GONE) is RefusalReason.RULE
    assert reason_of("RCPT", "451 4.3.0 Local error") is RefusalReason.PRESSURE


ACME, GLOBEX = "acme/r", "globex/r"
TWO = {"acme": "1", "globex": "2"}


@each_row(
    "used, names, seen, left",
    [
        ({"tenants": TWO, "own": "acme"}, [ACME, GLOBEX, "o"], [ACME, "o"], {"acme": "1"}),
        ({"tenants": TWO}, [ACME, GLOBEX, "x/y"], ["x/y"], None),
        ({"tenants": {"acme": "1"}, "own": "acme"}, [ACME], [ACME], {"acme": "1"}),
        ({"tenants": {"acme": "1"}}, ["gone/*"], [], None),
        ({}, ["x/y"], ["x/y"], None),
    ],
)
def test_a_sender_sees_no_rules_of_other_tenants(used, names, seen, left) -> None:
    detail = {
        "rules": [
            {"rule": name, "mode": "enforce", "outcome": "hold", "recipients": []} for name in names
        ],
        "held": {hold_text("x", name): [ALICE] for name in names},
        "set": {"hash": "0", "loaded": "", **used},
    }
    found = sender_detail(read_detail(Step.POLICY_AND_ROUTING, detail), detail)
    assert [hit["rule"] for hit in found["rules"]] == seen
    assert [*found.get("held", ())] == [hold_text("x", name) for name in seen]
    assert found["set"].get("tenants") == left
    assert (found is detail) == (names == seen)


HELD = "{ hold = 'a look' }"
AMY = "amy@acme.test"
JOURNAL = "{ journal = 'j@acme.test' }"


def journals(relay: Relay) -> list[list[str]]:
    """Whom each journal report is about."""
    found = []
    for one in relay.spool.reports:
        text = read_all(one.contents[0]).decode()
        if "X-MS-Journal-Report" in text:
            found.append([line[5:] for line in text.splitlines() if line.startswith("Bcc: ")])
    return found


@pytest.mark.parametrize(
    ("rules", "to", "expected"),
    [
        # what is held is in the report as what is delivered is
        ([(ALICE, JOURNAL), (ALICE, "{ defer = '4.7.1 later' }")], [ALICE, BOB], [[ALICE]]),
        ([(ALICE, f"{JOURNAL}, {HELD}"), (AMY, JOURNAL)], [ALICE, AMY, BOB], [[ALICE, AMY]]),
    ],
)
async def test_what_is_held_is_journalled(tmp_path, rules, to, expected) -> None:
    assert (await accepted(relay := relay_for(tmp_path, rules), *to)).startswith("250")
    assert journals(relay) == expected


@pytest.mark.parametrize(
    ("rules", "to", "expected"),
    [
        ([(ALICE, f"{JOURNAL}, {HELD}"), (AMY, JOURNAL)], [ALICE, AMY, BOB], [[AMY]]),
        ([(ALICE, f"{JOURNAL}, {HELD}")], [ALICE, BOB], []),
        ([(ALICE, JOURNAL), (ALICE, "{ defer = '4.7.1 later' }")], [ALICE, BOB], []),
    ],
)
async def test_a_copy_that_may_not_be_held_is_in_no_journal(tmp_path, rules, to, expected) -> None:
    relay = relay_for(tmp_path, rules, spool=FullForAcme())
    assert (await accepted(relay, *to)).startswith("250")
    assert fates(relay)[ALICE] == FULL
    assert journals(relay) == expected


async def test_a_copy_in_junk_email_is_not_held(tmp_path) -> None:
    rules = [(ALICE, "{ quarantine = true }"), (AMY, HELD)]
    relay = relay_for(tmp_path, rules, spool=FullForAcme())
    assert (await accepted(relay, ALICE, AMY, BOB)).startswith("250")
    assert fates(relay) == {ALICE: "delivered", AMY: FULL, BOB: "delivered"}
    [message] = relay.spool.accepted
    assert {each.extra.folder for each in message.entries} == {"junkemail", ""}


async def test_an_answer_counts_once(tmp_path) -> None:
    relay = relay_for(tmp_path, [(ALICE, HELD)], spool=FullForAcme())
    acceptance = relay.acceptance()
    paths = [ForwardPath(ALICE), ForwardPath("postmaster@globex.test")]
    found = await acceptance.accept(Envelope("x@far.test"), paths, CONTENT, origin=UNTRUSTED)
    acceptance.close()
    assert (found.reply[:3], fates(relay)[ALICE]) == ("250", FULL)
    more = [acceptance.answers.why_discarded(Envelope("x@far.test"), 1) for _ in range(100)]
    assert sum(map(bool, more)) == 1  # the limit is 100


class FullForAll(MemorySpool):
    async def accept(self, message, **options):
        for rule in message.held_by_rules:
            raise HoldsFullError(rule.partition("/")[0])
        return await super().accept(message, **options)


class AlwaysFull(MemorySpool):
    async def accept(self, message, **options):
        await asyncio.sleep(0)  # so that a test ends that goes on for ever
        raise HoldsFullError("acme")


@pytest.mark.parametrize("spool", [FullForAll, AlwaysFull])
async def test_the_client_keeps_what_no_tenant_may_hold(tmp_path, spool) -> None:
    relay = relay_with(tmp_path, HELD, spool=spool())
    if spool is FullForAll:
        tenants = {name: replace(one, rules=None) for name, one in relay.rules.tenants.items()}
        relay.rules = RuleBook(relay.rules.operator, tenants)
    async with asyncio.timeout(120):
        assert (await accepted(relay, ALICE, BOB))[:3] in ("451", "452")
    assert not relay.spool.accepted


class Routed(TwoTenants):
    @property
    def router(self):
        route = Route(domain="acme.test", next_hop="smtp://mx.acme.test:25")
        return RouteTable((route,), ["acme.test", "globex.test"], self.accounts)


async def test_a_copy_with_two_holds_is_rejected_for_the_one_that_counts(tmp_path) -> None:
    relay = relay_for(tmp_path, [("*", "{ quarantine = true }")])
    early = relay_for(tmp_path, [("*@acme.test", "{ hold = 'look' }")]).rules.tenants["acme"].rules
    early = RuleSet(tuple(replace(one, name="look") for one in early.rules))
    relay = Routed(
        accounts=People(), rules=RuleBook(early, relay.rules.tenants), spool=FullForAcme()
    )
    async with asyncio.timeout(120):
        assert (await accepted(relay, ALICE, BOB)).startswith("250")
    assert fates(relay) == {ALICE: FULL, BOB: "delivered"}


@pytest.mark.parametrize("spool", [MemorySpool, FullForAcme])
async def test_what_one_tenant_holds_is_not_lost_for_others(tmp_path, spool) -> None:
    """A redirect of the operator to one address for all."""
    relay = relay_for(tmp_path, [("*", "{ defer = '4.7.1 later' }")], spool=spool())
    rules = (
        relay_for(tmp_path, [("*", "{ redirect = 'bob@globex.test' }")]).rules.tenants["acme"].rules
    )
    rules = tuple(replace(one, name="late", file=Path("60.toml")) for one in rules.rules)
    relay.rules = RuleBook(RuleSet(rules), relay.rules.tenants)
    assert (await accepted(relay, ALICE, GUS)).startswith("250")
    assert fates(relay)[BOB] == "delivered"
