"""The limits of rate_limit actions: counts in memory, by rule and key."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.verdict import RateCharge
from relay.base.sliding_window import Reservation
from relay.store.spool.types import SpoolUnavailableError
from relay.transport.ingress.data import DataReply, Origin
from relay.transport.ingress.listener_role import PICKUP
from relay.transport.ingress.message_limits import KEYS_MAX, TENANT_KEYS_MAX, RateLimits
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_files import read_rules
from tests.support.ingress import Relay
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

HOUR_S = 3600.0


def charge(recipients: int = 1, *, allowed: int = 10, **others: str | float) -> RateCharge:
    given = {"rule": "r", "per": "sender", "key": "a@in.test", "period_s": HOUR_S} | others
    return RateCharge(
        recipients=recipients, allowed=allowed, status="4.7.1", text="slower", **given
    )


def limits() -> tuple[RateLimits, ManualClock]:
    clock = ManualClock()
    return RateLimits(clock), clock


def passes(limits: RateLimits, *charges: RateCharge) -> bool:
    return isinstance(limits.reserve(charges), Reservation)


@each_row(
    "other",
    [
        {"rule": "other"},
        {"per": "login"},
        {"key": "b@in.test"},
        {"period_s": 60.0},
        {"allowed": 11},
    ],
)
def test_each_limit_counts_for_itself(other):
    rates, _ = limits()
    assert passes(rates, charge(10))
    assert passes(rates, charge(10, **other))
    assert not passes(rates, charge(1))
    assert passes(rates, charge(0))


def test_beyond_one_limit_nothing_counts_for_the_others():
    rates, _ = limits()
    assert passes(rates, charge(10, rule="second"))
    assert not passes(rates, charge(7), charge(1, rule="second"))
    assert passes(rates, charge(10))


def test_what_is_given_back_does_not_count():
    rates, clock = limits()
    reservation = rates.reserve([charge(6), charge(6, rule="second")])
    reservation.give_back()
    reservation.give_back()
    assert passes(rates, charge(10), charge(10, rule="second"))
    clock.advance(2 * HOUR_S)
    late = rates.reserve([charge(10)])
    clock.advance(2 * HOUR_S)
    assert passes(rates, charge(10))
    late.give_back()  # of a period that is over
    assert not passes(rates, charge(1))


def test_the_least_recently_used_key_is_forgotten():
    rates, _ = limits()
    for key in range(KEYS_MAX):
        assert passes(rates, charge(10, key=str(key)))
    assert not passes(rates, charge(1, key="0"))  # which uses it
    assert passes(rates, charge(10, key="new"))
    assert [passes(rates, charge(1, key=key)) for key in ("0", "2", "new")] == [False] * 3
    assert passes(rates, charge(1, key="1"))


@pytest.mark.parametrize("other", ["r", "good/r"])
def test_a_tenant_forgets_its_own_keys_only(other):
    rates, _ = limits()
    assert passes(rates, charge(10, rule=other))
    for key in range(TENANT_KEYS_MAX + 2):
        assert passes(rates, charge(10, rule="evil/r", key=str(key)))
    assert not passes(rates, charge(1, rule=other))
    assert passes(rates, charge(1, rule="evil/r", key="0"))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.floats(0, 200), st.integers(1, 4)), min_size=1, max_size=60),
)
def test_in_no_period_more_pass_than_allowed(allowed: int, mail: list[tuple[float, int]]):
    rates, clock = limits()
    passed: list[tuple[float, int]] = []
    for pause_s, recipients in mail:
        clock.advance(pause_s)
        now_s = clock.monotonic()
        counted = [(at_s, count) for at_s, count in passed if at_s > now_s - 100]
        total = sum(count for _, count in counted) + recipients
        if passes(rates, charge(recipients, allowed=allowed, period_s=100.0)):
            assert total <= allowed
            passed.append((now_s, recipients))
        else:  # a recipient counts for a sixtieth longer at most
            longer = sum(count for at_s, count in passed if at_s > now_s - 100 * 62 / 60)
            assert longer + recipients > allowed


# -- acceptance

TRUSTED = Origin("127.0.0.1", "client.test", trusted=True)
RULE = """
[[rule]]
name = "slow"
when = { recipient = "*@limited.test" }
then = [ { rate_limit = { rate = "10/1h", per = "sender", text = "4.7.2 Ten in an hour" } } ]

[[rule]]
name = "no"
when = { recipient = "no@*" }
then = [ { reject = "5.7.1 No" } ]
"""


@pytest.fixture
def rules(tmp_path) -> RuleSet:
    (tmp_path / "10.toml").write_text(RULE)
    return read_rules(tmp_path)


def sent(*recipients: str, number: int = 0) -> tuple[Envelope, list[ForwardPath]]:
    envelope = Envelope("alice@example.test", envid=str(number))
    return envelope, [ForwardPath(address) for address in recipients]


async def test_only_accepted_recipients_count(rules):
    relay = Relay(rules=rules)
    acceptance = relay.acceptance()

    async def reply(*recipients: str) -> str:
        decision = await acceptance.accept(
            *sent(*recipients), b"Subject: x\r\n\r\nx", origin=TRUSTED
        )
        return decision.reply[:9]

    nine = [f"{number}@limited.test" for number in range(9)]
    assert await reply("no@limited.test") == "550 5.7.1"
    relay.spool.fault = SpoolUnavailableError("broken")
    assert await reply(*nine) == "451 4.3.0"
    relay.spool.fault = None
    assert await reply(*nine, "free@other.test", "no@limited.test") == "250 2.0.0"
    assert await reply("x@limited.test", "y@limited.test") == "451 4.7.2"
    assert await reply("x@limited.test") == "250 2.0.0"
    assert await reply("x@limited.test") == "451 4.7.2"
    assert await reply("free@other.test") == "250 2.0.0"
    acceptance.close()


async def test_a_repeated_submission_is_accepted_beyond_the_limit(rules):
    relay, pickup = Relay(rules=rules), structs.replace(TRUSTED, role=PICKUP)
    acceptance = relay.acceptance()

    async def reply(number: int) -> DataReply:
        one = sent(*[f"{each}@limited.test" for each in range(6)], number=number)
        return await acceptance.accept(*one, b"Subject: x\r\n\r\nx", origin=pickup)

    first = await reply(1)
    assert (await reply(2)).reply == "451 4.7.2 Ten in an hour"
    assert await reply(1) == first  # of which pickup lost the 250
    assert [message.facts.id for message in relay.spool.accepted] == [first.queue_id]
    acceptance.close()


async def test_a_message_counts_nothing_if_an_error_comes_before_its_commit(rules):
    class FailingReporter:
        def reports(self, *_, **__):
            raise RuntimeError("broken")

    relay = Relay(rules=rules)
    acceptance = relay.acceptance(reporter=FailingReporter())

    async def reply(*recipients: str) -> str:
        decision = await acceptance.accept(
            *sent(*recipients), b"Subject: x\r\n\r\nx", origin=TRUSTED
        )
        return decision.reply[:9]

    ten = [f"{number}@limited.test" for number in range(10)]
    assert await reply(*ten, "no@other.test") == "451 4.3.0"  # its bounce cannot be written
    assert await reply(*ten) == "250 2.0.0"
    assert await reply("x@limited.test") == "451 4.7.2"
    acceptance.close()
