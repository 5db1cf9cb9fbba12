"""`relay dev --scenario tls`: what domains publish decides about the TLS of mail, and pages say how."""

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.dev_process import DevProcess

LAX = "configuration: opportunistic"
DEMANDED = "the MTA-STS policy of the domain demands TLS and its name"
SCENARIO = '[[domain]]\nname = "enforce.test"\n'
OTHER_HOST = 'mx = [{ host = "mx2.enforce.test" }]\n'  # with the first one there is a connection


@pytest.fixture(scope="module")
def relay() -> Iterator[DevProcess]:
    with DevProcess("--no-demo", "--scenario", "tls") as relay:
        yield relay


def attempt_of(relay: DevProcess, domain: str, state: str) -> tuple[dict[str, Any], str]:
    """The first attempt of a new message, and the page of the message as text."""
    identity = relay.submit("alice@example.test", [f"x@{domain}"])
    attempt = relay.until_state(identity, state)["recipients"][0]["attempts"][0]
    page = relay.request("GET", f"/messages/{identity}").body.decode()
    return attempt, re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", page)))


@pytest.mark.parametrize(
    ("domain", "state", "verified", "policy", "shown"),
    [
        ("enforce", "relayed", "name", "mta-sts: verify", "TLSv1.3, name verified, MTA-STS enforce"),
        ("enforce-expired", "deferred", "none", "mta-sts: verify", "no TLS, MTA-STS enforce"),
        ("enforce-other-name", "deferred", "chain", "mta-sts: verify",
         "TLSv1.3, certificate for another name, MTA-STS enforce"),
        ("enforce-plain", "deferred", "none", "mta-sts: verify", "no TLS, MTA-STS enforce"),
        ("testing-other-name", "relayed", "none", f"{LAX}; mta-sts testing; certificate-host-mismatch",
         f"TLSv1.3, certificate not verified, {LAX}; MTA-STS testing; certificate-host-mismatch"),
        ("none-expired", "relayed", "none", LAX, f"TLSv1.3, certificate not verified, {LAX}"),
    ],
)  # fmt: skip
def test_each_domain_of_the_shipped_scenario(
    relay: DevProcess, domain: str, state: str, verified: str, policy: str, shown: str
) -> None:
    attempt, page = attempt_of(relay, f"{domain}.test", state)
    assert (attempt["verified"], attempt["policy"]) == (verified, policy)
    assert f"mx1.{domain}.test ({shown})" in page
    if state == "deferred":
        reason = {
            "enforce-expired": "the certificate is refused: certificate has expired",
            "enforce-other-name": f"is for wrong-name.invalid, not mx1.{domain}.test",
            "enforce-plain": "the host does not offer STARTTLS, and TLS is required",
        }[domain]
        assert attempt["status"] == "4.7.5"
        assert f"{reason}; {DEMANDED}" in page


def test_no_policy_outlives_its_scenario(relay: DevProcess) -> None:
    toml = {"Content-Type": "application/toml"}
    internet = "/relay/v1/dev/internet"
    before = relay.request("GET", internet).body
    assert attempt_of(relay, "enforce.test", "relayed")[0]["policy"] == "mta-sts: verify"
    for changed, state, policy in [
        ("", "relayed", LAX),
        (f'{OTHER_HOST}mta_sts = "enforce"\ncertificate = "expired"\n', "deferred", "mta-sts: verify"),
        (f'{OTHER_HOST}mta_sts = "testing"\ncertificate = "expired"\n', "relayed",
         f"{LAX}; mta-sts testing; certificate-expired"),
        (f'{OTHER_HOST}mta_sts = "enforce"\naliases = ["also.test"]\n', "relayed", "mta-sts: verify"),
    ]:  # fmt: skip
        answer = relay.request("PUT", internet, (SCENARIO + changed).encode(), toml)
        assert answer.status == 200, answer.body
        assert attempt_of(relay, "enforce.test", state)[0]["policy"] == policy
    assert attempt_of(relay, "also.test", "relayed")[0]["verified"] == "name"
    assert relay.request("PUT", internet, before, toml).status == 200
