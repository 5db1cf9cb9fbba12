"""The TLS policy of a host, from that of its next hop and its own."""

from pathlib import Path

import pytest

from relay.message.tls_policy import TlsPolicy

ROUTE = TlsPolicy("verify", ca=Path("/etc/ca.pem"), names=("a.test",))


@pytest.mark.parametrize(
    ("policy", "own", "expected"),
    [
        (TlsPolicy("none"), None, TlsPolicy("none")),
        (TlsPolicy("verify"), None, TlsPolicy("verify", names=("mx.test",))),
        (ROUTE, None, ROUTE),
        (ROUTE, TlsPolicy("verify"), ROUTE),
        (ROUTE, TlsPolicy("none"), ROUTE),
        (TlsPolicy("required"), ROUTE, ROUTE),
        (TlsPolicy("opportunistic"), TlsPolicy("required"), TlsPolicy("required")),
        (TlsPolicy("opportunistic"), TlsPolicy("none"), TlsPolicy("opportunistic")),
        (TlsPolicy("none", implicit=True), TlsPolicy("required"), TlsPolicy("required", implicit=True)),
        (TlsPolicy("none"), TlsPolicy("required", implicit=True), TlsPolicy("required")),
    ],
)  # fmt: skip
def test_a_policy_of_the_host_only_raises_the_level(policy, own, expected):
    assert policy.for_host("mx.test", own) == expected
    assert expected.for_host("other.test") == expected  # the names are decided
