"""MX selection, and the outcome of an unresolved next hop."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.outcome import DeferralClass, Deferred, Failed
from relay.transport.routing import mx_hosts
from tests.support.tables import each_row


@each_row(
    "unresolved, kind, status",
    [
        (mx_hosts.NullMx("x.test"), Failed, "5.1.10"),
        (mx_hosts.NoSuchDomain("x.test"), Failed, "5.1.2"),
        (mx_hosts.NoAddress("x.test"), Failed, "5.4.4"),
        (mx_hosts.MailLoop("x.test"), Failed, "5.4.6"),
        (mx_hosts.TemporaryFailure("x.test: SERVFAIL"), Deferred, "4.4.3"),
        (mx_hosts.TemporaryFailure("x.test has no address", "4.4.4"), Deferred, "4.4.4"),
    ],
)
def test_only_definite_answers_fail_and_each_says_what_about(unresolved, kind, status):
    outcome = mx_hosts.outcome_of(unresolved)
    assert isinstance(outcome, kind)
    assert outcome.evidence.status == status
    assert "x.test" in outcome.evidence.reply
    assert not outcome.evidence.remote
    if isinstance(outcome, Deferred):
        assert outcome.kind is DeferralClass.DNS


@pytest.mark.parametrize(
    "kind", [mx_hosts.NullMx, mx_hosts.NoSuchDomain, mx_hosts.NoAddress, mx_hosts.MailLoop]
)
def test_a_definite_answer_for_an_own_domain_is_a_fault_that_can_be_corrected(kind):
    outcome = mx_hosts.outcome_of(kind("x.test"), "x.test".__eq__)
    assert (type(outcome), outcome.evidence.status) == (Deferred, "4.4.4")
    assert isinstance(mx_hosts.outcome_of(kind("y.test"), "x.test".__eq__), Failed)


EXCHANGES = st.lists(st.builds(mx_hosts.Exchange, st.integers(0, 5), st.sampled_from("abcdefgh")))


@given(EXCHANGES, st.integers())
def test_mx_hosts_are_in_the_order_of_preference(exchanges, seed):
    ordered = mx_hosts.by_preference(exchanges, random.Random(seed))
    preferences = [each.preference for each in ordered]
    assert preferences == sorted(each.preference for each in exchanges)[: mx_hosts.EXCHANGES_MAX]


@given(EXCHANGES)
def test_mx_hosts_that_are_not_better_than_the_relay_are_dropped(exchanges):
    skipped = mx_hosts.leading_back(exchanges, lambda each: each.name == "a")
    left = [each for each in exchanges if each not in skipped]
    own = [each.preference for each in exchanges if each.name == "a"]
    assert all(each.preference < least for each in left for least in own)
    assert own or left == exchanges
    assert all((each.name == "a") == (why == "this relay") for each, why in skipped.items())


@given(EXCHANGES, st.data())
def test_an_mx_answer_shows_the_hosts_considered_before_others_and_counts_the_rest(exchanges, data):
    each = list(dict.fromkeys(exchanges))
    considered = data.draw(st.permutations(each))[: mx_hosts.EXCHANGES_MAX]
    answer = mx_hosts.mx_answer(each, considered, dict.fromkeys(considered[:1], "no address"))
    assert len(answer.hosts) <= mx_hosts.EXCHANGES_MAX
    assert len(answer.hosts) + answer.more == len(each)
    shown = [mx_hosts.Exchange(host.preference, host.name) for host in answer.hosts]
    assert set(considered) <= set(shown)
    assert shown == sorted(shown, key=lambda one: (one.preference, one.name))
    assert [
        one for one, host in zip(shown, answer.hosts, strict=True) if host.skipped
    ] == considered[:1]
