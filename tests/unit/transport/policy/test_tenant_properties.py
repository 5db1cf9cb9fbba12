"""Worlds of tenants: no tenant's rules see, change, delay or reject a copy that is another's."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.base.message.content import read_all
from relay.base.message.envelope import domain_of
from relay.base.message.verdict import ExaminedMessage, Hold, Verdict, VerdictAction
from relay.transport.policy.actions import ACTIONS
from relay.transport.policy.content_actions import SetSenderAction
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.explanation import explain
from relay.transport.policy.recipient_actions import DeferAction
from relay.transport.policy.rule_book import LATE, RuleBook, TenantRules
from relay.transport.policy.rules import ConditionSet, OnError, Rule, RuleMode
from tests.support.rule_sets import ACTION_VALUES, evaluated, messages, rule_sets

# in.test and far.test are of two tenants, those of out.test partly: a world may leave one out
DOMAINS = ("in.test", "out.test", "far.test")
World = tuple[RuleBook, ExaminedMessage]


@st.composite
def tenant_rules(draw: st.DrawFn, name: str) -> RuleSet | None:
    """Rules of a tenant, now and then none that could be used. The last one is often for all mail,
    and does what is for a whole message: few others come so far.
    """
    if draw(st.integers(0, 9)) == 0:
        return None
    rules = draw(rule_sets(3)).rules
    if key := draw(st.sampled_from(["", "set_sender", "set_sender", "defer", "rate_limit"])):
        whole = (ACTIONS[key].parse(draw(ACTION_VALUES[key])),)
        every = ConditionSet.of([], [])
        rules += (
            Rule(
                "all",
                RuleMode.ENFORCE,
                when=every,
                unless=every,
                actions=whole,
                outcome=key,
                stop=False,
                on_error=OnError.DEFER,
                file=Path(),
                line=1,
            ),
        )
    return RuleSet(tuple(replace(each, name=f"{name}/{each.name}") for each in rules))


@st.composite
def operator_rules(draw: st.DrawFn) -> RuleSet:
    """Rules of the operator. What late ones do to the whole message is their own doing, also if it
    is for what a tenant has changed: see docs/policy-tenants.md.
    """
    rules = []
    for each in draw(rule_sets(4)).rules:
        is_whole = any(isinstance(one, DeferAction | SetSenderAction) for one in each.actions)
        is_early = is_whole or draw(st.booleans())
        rules.append(replace(each, file=Path("10-a.toml" if is_early else f"{LATE}b.toml")))
    return RuleSet(tuple(sorted(rules, key=lambda each: each.file)))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Tenants with one domain each, and a message of a stranger, a login or a trusted client."""
    domains = draw(st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=3, unique=True))
    tenants = {}
    for domain in domains:
        name = domain.removesuffix(".test")
        tenants[name] = TenantRules(name, frozenset([domain]), draw(tenant_rules(name)))
    message = draw(messages())
    is_trusted = draw(st.booleans())
    return RuleBook(draw(operator_rules()), tenants), replace(
        message,
        sender_local=is_trusted and bool(message.reverse_path),
        login=draw(st.sampled_from(["", "a@in.test", "b@out.test"])) if is_trusted else "",
        local=frozenset(each for each in message.recipients if domain_of(each) != "far.test"),
        is_own=lambda _: True,
    )


def sender_tenant(book: RuleBook, message: ExaminedMessage) -> str:
    of_login = owner(book, message.login)
    return (owner(book, message.reverse_path) if message.sender_local else "") or of_login


def owner(book: RuleBook, address: str) -> str:
    tenant = book.tenant_of(domain_of(address))
    return tenant.name if tenant else ""


def with_only(book: RuleBook, *names: str) -> RuleBook:
    return RuleBook(book.operator, {one: book.tenants[one] for one in names if one})


def octets(verdict: Verdict, content: int) -> bytes:
    return read_all(verdict.contents[content].joined())


def fates(verdict: Verdict) -> dict[str, Any]:
    """What becomes of each recipient."""
    if verdict.deferred:
        return {each.address: verdict.deferred for each in verdict.recipients}
    return {
        each.address: (
            replace(each, content=0, tenant=""),
            octets(verdict, each.content) if each.action is VerdictAction.DELIVER else b"",
        )
        for each in verdict.recipients
    }


def added(verdict: Verdict) -> set[tuple[str, bytes, Hold | None]]:
    """The copies that rules have added."""
    found = () if verdict.deferred else verdict.additions
    return {(each.address, octets(verdict, each.content), each.hold) for each in found}


def of_tenant(verdict: Verdict, tenant: str) -> set[tuple[str, bytes, Hold | None]]:
    """The copies that are added for recipients of a tenant."""
    own = tuple(each for each in verdict.additions if each.tenant == tenant)
    return added(replace(verdict, additions=own))


@given(worlds())
def test_only_the_rules_of_its_sender_and_of_its_recipient_concern_a_copy(world: World) -> None:
    book, message = world
    verdict, sender = evaluated(book, message), sender_tenant(book, message)
    found = fates(verdict)
    for recipient in message.recipients:
        alone = with_only(book, *{sender, owner(book, recipient)})
        expected = evaluated(alone, message)
        assert found[recipient] == fates(expected)[recipient]
    assert verdict.deferred or verdict.sender == evaluated(with_only(book, sender), message).sender


@given(worlds(), st.data())
def test_other_rules_of_one_tenant_change_nothing_for_the_others(world: World, data: st.DataObject):
    book, message = world
    sender = sender_tenant(book, message)
    for name in book.tenants.keys() - {sender}:
        other = replace(book.tenants[name], rules=data.draw(tenant_rules(name)))
        changed = RuleBook(book.operator, {**book.tenants, name: other})
        before, after = evaluated(book, message), evaluated(changed, message)
        others = [each for each in message.recipients if owner(book, each) != name]
        if not others:
            continue
        assert [fates(before)[each] for each in others] == [fates(after)[each] for each in others]
        assert before.sender == after.sender
        theirs = {each for each in message.recipients if owner(book, each) == name}
        for tenant in book.tenants.keys() - {name, sender}:
            for one, two in ((before, after), (after, before)):
                lacking = of_tenant(one, tenant) - added(two)
                assert {address for address, *_ in lacking} <= theirs


@given(worlds())
def test_a_tenant_sees_its_own_recipients(world: World) -> None:
    book, message = world
    verdict, sender = evaluated(book, message), sender_tenant(book, message)
    explained = explain(book, message)
    assert explained.verdict == verdict
    shown = [(each.rule, each.recipients) for each in explained.rules]
    for rule, recipients in [(each.rule, each.recipients) for each in verdict.hits] + shown:
        tenant, slash, _ = rule.partition("/")
        if slash and tenant != sender:
            assert {owner(book, each) for each in recipients} <= {tenant}
