"""The one decision on the TLS of a host: its policy, and who demands it."""

from pathlib import Path

import pytest

from relay.base.message.mta_sts import NO_STS, StsFinding, StsPolicy
from relay.base.message.tls_policy import (
    TlsaFinding,
    TlsaRecord,
    TlsDecision,
    TlsPolicy,
    decide_tls,
)
from tests.support.tables import each_row

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


@each_row(
    "policy, found, expected",
    [
        (LAX, NO_STS, TlsDecision(LAX)),
        (LAX, sts("enforce"), TlsDecision(VERIFY, "mta-sts")),
        (NONE, sts("enforce"), TlsDecision(VERIFY, "mta-sts")),
        (TlsPolicy("required"), sts("enforce"), TlsDecision(VERIFY, "mta-sts")),
        (
            LAX,
            sts("enforce", "*.x.test"),
            TlsDecision(LAX, skipped="not in the MTA-STS policy of the domain"),
        ),
        (LAX, sts("testing"), TlsDecision(TESTING, note="mta-sts testing")),
        (NONE, sts("testing"), TlsDecision(NONE, note="mta-sts testing")),
        (
            LAX,
            sts("testing", "x.test"),
            TlsDecision(TESTING, note="mta-sts testing: the host is not in the policy"),
        ),
        (LAX, sts("none"), TlsDecision(LAX)),
        (LAX, UNKNOWN, TlsDecision(LAX, note=NOT_FETCHED)),
        (LAX, StsFinding(), TlsDecision(LAX)),
    ],
)
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
        (
            TlsPolicy("required"),
            NO_STS,
            True,
            TlsDecision(TlsPolicy("required"), "requiretls", skipped=NO_NAME),
        ),
        (VERIFY, NO_STS, True, TlsDecision(STRICT, "requiretls")),
        (NONE, sts("enforce"), False, TlsDecision(STRICT, "requiretls", "by mta-sts")),
        (LAX, sts("enforce", "x.test"), False, TlsDecision(LAX, skipped=NOT_LISTED)),
        (
            LAX,
            sts("testing"),
            False,
            TlsDecision(TESTING, "requiretls", "mta-sts testing", NO_NAME),
        ),
        (LAX, sts("none"), False, TlsDecision(LAX, "requiretls", skipped=NO_NAME)),
        (LAX, UNKNOWN, False, TlsDecision(LAX, "requiretls", NOT_FETCHED, NO_NAME)),
    ],
)
def test_requiretls_needs_a_name_that_is_certain_whatever_a_route_says(
    policy, found, vouched, expected, by
):
    decided = decide_tls("mx.test", policy, by=by, sts=found, demand="requiretls", vouched=vouched)
    assert decided == expected


NO = "TLS-Required: No"


@each_row(
    "policy, by, found, expected",
    [
        (LAX, "configuration", sts("enforce"), TlsDecision(LAX, note=NO)),
        (LAX, "configuration", sts("enforce", "x.test"), TlsDecision(LAX, note=NO)),
        (
            TlsPolicy("required"),
            "configuration",
            sts("enforce"),
            TlsDecision(TlsPolicy("required"), note=NO),
        ),
        (LAX, "configuration", sts("testing"), TlsDecision(LAX, note=NO)),
        (LAX, "configuration", sts("none"), TlsDecision(LAX)),
        (LAX, "configuration", NO_STS, TlsDecision(LAX)),
        (
            ROUTE,
            "route a",
            sts("enforce"),
            TlsDecision(ROUTE, "route a", "policy overridden by route"),
        ),
        (ROUTE, "route a", NO_STS, TlsDecision(ROUTE, "route a")),
    ],
)
def test_tls_required_no_lowers_what_the_domain_says_and_nothing_else(policy, by, found, expected):
    assert decide_tls("mx.test", policy, by=by, sts=found, demand="optional") == expected
    assert decide_tls("mx.test", policy, by=by, demand="requiretls if offered") == TlsDecision(
        policy, by
    )


RECORD = TlsaRecord(3, 1, 1, bytes(32))
TLSA = TlsaFinding(2, (RECORD,), ("mx.test",), is_known=True)
UNKNOWN_HOST = TlsaFinding(2, (RECORD,), ("mx.test",))
ALIAS = TlsaFinding(1, (RECORD,), ("www.mx.test",), is_known=True)
NO_USABLE = TlsaFinding(300, (), ("mx.test",))
BROKEN = TlsaFinding(trouble="its TLSA records could not be looked up: SERVFAIL")
NO_TLSA = TlsaFinding()
MUST = TlsPolicy("dane")
HAS_NONE = "it has no TLSA record that can be used"
OVERRIDDEN = "policy overridden by route"


def dane(name="mx.test", **more):
    return TlsPolicy("dane", names=(name,), tlsa=(RECORD,), **more)


@each_row(
    "policy, tlsa, expected",
    [
        (LAX, TLSA, TlsDecision(dane(), "dane", proof=True)),
        (NONE, TLSA, TlsDecision(dane(), "dane", proof=True)),
        (LAX, ALIAS, TlsDecision(dane("www.mx.test"), "dane", proof=True)),
        (LAX, NO_USABLE, TlsDecision(MUST, "dane", "no TLSA record can be used")),
        (LAX, BROKEN, TlsDecision(LAX, skipped=BROKEN.trouble)),
        (LAX, NO_TLSA, TlsDecision(LAX)),
    ],
)
def test_tlsa_records_raise_what_the_configuration_says(policy, tlsa, expected):
    assert decide_tls("mx.test", policy, tlsa=tlsa) == expected
    for found in (sts("enforce"), sts("enforce", "x.test"), sts("testing")):  # RFC 8461 2
        decided = decide_tls("mx.test", policy, tlsa=tlsa, sts=found)
        is_less = tlsa == NO_TLSA or (tlsa == NO_USABLE and found.policy.mode == "enforce")
        assert decided == (decide_tls("mx.test", policy, sts=found) if is_less else expected)


def test_behind_an_mx_answer_that_was_not_validated_dane_is_used_but_is_no_proof():
    found = decide_tls("mx.test", LAX, tlsa=UNKNOWN_HOST)
    assert found == TlsDecision(dane(), "dane", "MX answer not validated")
    for policy in (sts("enforce"), sts("testing", "x.test")):
        assert decide_tls("mx.test", LAX, tlsa=UNKNOWN_HOST, sts=policy) == found
    # who forges the answer may have a host with TLSA records
    forged = decide_tls("mx.test", LAX, tlsa=UNKNOWN_HOST, sts=sts("enforce", "x.test"))
    assert forged.skipped == "not in the MTA-STS policy of the domain"


@each_row(
    "policy, tlsa, expected",
    [
        (MUST, TLSA, TlsDecision(dane(), "route a", proof=True)),
        (
            TlsPolicy("dane", implicit=True),
            TLSA,
            TlsDecision(dane(implicit=True), "route a", proof=True),
        ),
        (MUST, UNKNOWN_HOST, "the MX answer of the domain was not validated"),
        (MUST, NO_USABLE, HAS_NONE),
        (MUST, NO_TLSA, HAS_NONE),
        (MUST, BROKEN, BROKEN.trouble),
        (NONE, TLSA, TlsDecision(NONE, "route a", OVERRIDDEN)),
        (ROUTE, NO_USABLE, TlsDecision(ROUTE, "route a", OVERRIDDEN)),
        (ROUTE, BROKEN, TlsDecision(ROUTE, "route a")),
        (ROUTE, NO_TLSA, TlsDecision(ROUTE, "route a")),
    ],
)
def test_a_route_decides_alone_and_may_demand_dane(policy, tlsa, expected):
    decided = decide_tls("mx.test", policy, by="route a", tlsa=tlsa)
    if isinstance(expected, str):
        assert decided.skipped == expected
    else:
        assert decided == expected
    if policy.level == "dane":
        found = decide_tls("mx.test", policy, by="route a", tlsa=tlsa, sts=sts("enforce"))
        assert found == decided


STRICT_DANE = TlsPolicy("dane", names=("mx.test",), tlsa=(RECORD,), requiretls=True)


@each_row(
    "policy, tlsa, found, expected",
    [
        (LAX, TLSA, NO_STS, TlsDecision(STRICT_DANE, "requiretls", "by dane")),
        (MUST, TLSA, NO_STS, TlsDecision(STRICT_DANE, "requiretls")),
        (LAX, UNKNOWN_HOST, NO_STS, NO_NAME),
        (LAX, UNKNOWN_HOST, sts("enforce"), TlsDecision(STRICT_DANE, "requiretls", "by dane")),
        (LAX, UNKNOWN_HOST, sts("enforce", "x.test"), "not in the MTA-STS policy of the domain"),
        (LAX, UNKNOWN_HOST, sts("testing"), NO_NAME),
        (LAX, NO_USABLE, NO_STS, NO_NAME),
        (LAX, BROKEN, sts("enforce"), BROKEN.trouble),
        (MUST, UNKNOWN_HOST, NO_STS, "the MX answer of the domain was not validated"),
    ],
)
def test_requiretls_needs_dane_of_a_host_that_is_certain(policy, tlsa, found, expected):
    for by in ("configuration", "route a"):
        decided = decide_tls("mx.test", policy, by=by, tlsa=tlsa, sts=found, demand="requiretls")
        assert expected in (decided, decided.skipped)


@each_row("tlsa", [TLSA, UNKNOWN_HOST, NO_USABLE, BROKEN])
def test_tls_required_no_lowers_dane_but_not_that_of_a_route(tlsa):
    found = decide_tls("mx.test", LAX, tlsa=tlsa, demand="optional")
    assert found == TlsDecision(LAX, note=NO)
    for policy in (MUST, ROUTE):
        decided = decide_tls("mx.test", policy, by="route a", tlsa=tlsa)
        assert decide_tls("mx.test", policy, by="route a", tlsa=tlsa, demand="optional") == decided
