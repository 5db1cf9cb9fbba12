"""The one decision on the TLS of a host: its policy, and who demands it."""

from pathlib import Path

import pytest

from relay.message.mta_sts import NO_STS, StsFinding, StsPolicy
from relay.message.tls_policy import TlsDecision, TlsPolicy, decide_tls

ROUTE = TlsPolicy("verify", ca=Path("/etc/ca.pem"), names=("a.test",))
IMPLICIT = TlsPolicy("required", implicit=True)


@pytest.mark.parametrize(
    ("policy", "has_login", "expected"),
    [
        (TlsPolicy("none"), False, TlsPolicy("none")),
        (TlsPolicy("opportunistic"), False, TlsPolicy("opportunistic")),
        (TlsPolicy("required"), False, TlsPolicy("required")),
        (TlsPolicy("verify"), False, TlsPolicy("verify", names=("mx.test",))),
        (ROUTE, False, ROUTE),
        (TlsPolicy("none", implicit=True), False, IMPLICIT),
        (TlsPolicy("opportunistic", implicit=True), False, IMPLICIT),
        (IMPLICIT, True, IMPLICIT),
        (TlsPolicy("verify", implicit=True), False, TlsPolicy("verify", True, names=("mx.test",))),
        (TlsPolicy("none"), True, TlsPolicy("none")),
        (TlsPolicy("opportunistic"), True, TlsPolicy("required")),
        (TlsPolicy("verify"), True, TlsPolicy("verify", names=("mx.test",))),
    ],
)
@pytest.mark.parametrize("by", ["configuration", "route a"])
def test_what_a_host_must_have(policy, has_login, expected, by):
    decided = decide_tls("mx.test", policy, by=by, has_login=has_login)
    assert decided == TlsDecision(expected, by)
    again = decide_tls("other.test", decided.policy, by=by, has_login=has_login)
    assert again == decided  # the names are decided


def sts(mode, mx="mx.test"):
    return StsFinding(policy=StsPolicy(mode, frozenset((mx,)), 60))


VERIFY = TlsPolicy("verify", names=("mx.test",))
LAX, NONE = TlsPolicy("opportunistic"), TlsPolicy("none")
TESTING = TlsPolicy("opportunistic", testing=True)
UNKNOWN = StsFinding(trouble="HTTP status 500")
NOT_FETCHED = "mta-sts policy not fetched (HTTP status 500)"


@pytest.mark.parametrize(
    ("policy", "found", "expected"),
    [
        (LAX, NO_STS, TlsDecision(LAX)),
        (LAX, sts("enforce"), TlsDecision(VERIFY, "mta-sts")),
        (NONE, sts("enforce"), TlsDecision(VERIFY, "mta-sts")),
        (TlsPolicy("required"), sts("enforce"), TlsDecision(VERIFY, "mta-sts")),
        (LAX, sts("enforce", "*.x.test"), TlsDecision(LAX, skipped="not in the MTA-STS policy of the domain")),
        (LAX, sts("testing"), TlsDecision(TESTING, note="mta-sts testing")),
        (NONE, sts("testing"), TlsDecision(NONE, note="mta-sts testing")),
        (LAX, sts("testing", "x.test"), TlsDecision(TESTING, note="mta-sts testing: the host is not in the policy")),
        (LAX, sts("none"), TlsDecision(LAX)),
        (LAX, UNKNOWN, TlsDecision(LAX, note=NOT_FETCHED)),
        (LAX, StsFinding(), TlsDecision(LAX)),
    ],
)  # fmt: skip
def test_a_policy_of_the_domain_raises_what_the_configuration_says(policy, found, expected):
    assert decide_tls("mx.test", policy, sts=found) == expected


@pytest.mark.parametrize("policy", [NONE, LAX, ROUTE])
@pytest.mark.parametrize("found", [sts("enforce"), sts("testing"), UNKNOWN, sts("enforce", "x")])
def test_a_route_decides_alone_and_says_so(policy, found):
    decided = decide_tls("mx.test", policy, by="route a", sts=found)
    assert decided == TlsDecision(policy, "route a", note="policy overridden by route")
    assert decide_tls("mx.test", policy, by="route a", sts=sts("none")).note == ""


STRICT = TlsPolicy("verify", names=("mx.test",), requiretls=True)
NO_NAME = "REQUIRETLS: nothing vouches for its name"
NOT_LISTED = "not in the MTA-STS policy of the domain"


@pytest.mark.parametrize("by", ["configuration", "route a"])
@pytest.mark.parametrize(
    ("policy", "found", "vouched", "expected"),
    [
        (LAX, NO_STS, False, TlsDecision(LAX, "requiretls", skipped=NO_NAME)),
        (NONE, NO_STS, True, TlsDecision(NONE, "requiretls", skipped=NO_NAME)),
        (VERIFY, NO_STS, False, TlsDecision(VERIFY, "requiretls", skipped=NO_NAME)),
        (TlsPolicy("required"), NO_STS, True, TlsDecision(TlsPolicy("required"), "requiretls", skipped=NO_NAME)),
        (VERIFY, NO_STS, True, TlsDecision(STRICT, "requiretls")),
        (NONE, sts("enforce"), False, TlsDecision(STRICT, "requiretls", "by mta-sts")),
        (LAX, sts("enforce", "x.test"), False, TlsDecision(LAX, skipped=NOT_LISTED)),
        (LAX, sts("testing"), False, TlsDecision(TESTING, "requiretls", "mta-sts testing", NO_NAME)),
        (LAX, sts("none"), False, TlsDecision(LAX, "requiretls", skipped=NO_NAME)),
        (LAX, UNKNOWN, False, TlsDecision(LAX, "requiretls", NOT_FETCHED, NO_NAME)),
    ],
)  # fmt: skip
def test_requiretls_needs_a_name_that_is_certain_whatever_a_route_says(
    policy, found, vouched, expected, by
):
    decided = decide_tls("mx.test", policy, by=by, sts=found, demand="requiretls", vouched=vouched)
    assert decided == expected


NO = "TLS-Required: No"


@pytest.mark.parametrize(
    ("policy", "by", "found", "expected"),
    [
        (LAX, "configuration", sts("enforce"), TlsDecision(LAX, note=NO)),
        (LAX, "configuration", sts("enforce", "x.test"), TlsDecision(LAX, note=NO)),
        (TlsPolicy("required"), "configuration", sts("enforce"), TlsDecision(TlsPolicy("required"), note=NO)),
        (LAX, "configuration", sts("testing"), TlsDecision(LAX, note=NO)),
        (LAX, "configuration", sts("none"), TlsDecision(LAX)),
        (LAX, "configuration", NO_STS, TlsDecision(LAX)),
        (ROUTE, "route a", sts("enforce"), TlsDecision(ROUTE, "route a", "policy overridden by route")),
        (ROUTE, "route a", NO_STS, TlsDecision(ROUTE, "route a")),
    ],
)  # fmt: skip
def test_tls_required_no_lowers_what_the_domain_says_and_nothing_else(policy, by, found, expected):
    assert decide_tls("mx.test", policy, by=by, sts=found, demand="optional") == expected
    assert decide_tls("mx.test", policy, by=by, demand="requiretls if offered") == TlsDecision(
        policy, by
    )
