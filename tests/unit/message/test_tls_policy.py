"""The one decision on the TLS of a host: its policy, and who demands it."""

from pathlib import Path

import pytest

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
