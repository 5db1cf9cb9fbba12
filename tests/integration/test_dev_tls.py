"""`relay dev --scenario tls`: what domains publish decides about the TLS of mail, and pages say how."""

import html
import re
from typing import Any

import pytest

from tests.support.dev_process import DevProcess

LAX = "configuration: opportunistic"
DEMANDED = "the MTA-STS policy of the domain demands TLS and its name"
SCENARIO = '[[domain]]\nname = "enforce.test"\n'
OTHER_HOST = 'mx = [{ host = "mx2.enforce.test" }]\n'  # with the first one there is a connection


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--scenario", "tls")


def attempt_of(relay: DevProcess, domain: str, state: str) -> tuple[dict[str, Any], str]:
    """The first attempt of a new message, and the page of the message as text."""
    identity = relay.submit("alice@example.test", [f"x@{domain}"])
    attempt = relay.until_state(identity, state)["recipients"][0]["attempts"][0]
    page = relay.request("GET", f"/messages/{identity}").body.decode()
    return attempt, re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", page)))


TESTED = f"{LAX}; mta-sts testing; certificate-host-mismatch"
BY_DANE = ("dane", "dane: dane", "TLSv1.3, TLSA record verified, DANE")


@pytest.mark.parametrize(
    ("domain", "verified", "policy", "shown"),
    [
        ("enforce", "name", "mta-sts: verify", "TLSv1.3, name verified, MTA-STS enforce"),
        (
            "testing-other-name",
            "none",
            TESTED,
            f"TLSv1.3, certificate not verified, {TESTED.replace('mta-sts', 'MTA-STS')}",
        ),
        ("none-expired", "none", LAX, f"TLSv1.3, certificate not verified, {LAX}"),
        ("dane", *BY_DANE),
        ("dane-expired", *BY_DANE),
    ],
)
def test_domains_whose_mail_arrives(
    relay: DevProcess, domain: str, verified: str, policy: str, shown: str
) -> None:
    attempt, page = attempt_of(relay, f"{domain}.test", "relayed")
    assert (attempt["verified"], attempt["policy"]) == (verified, policy)
    assert f"mx1.{domain}.test: 250" in page
    assert shown.removeprefix("TLSv1.3, ") in page  # the cipher comes between


@pytest.mark.parametrize(
    ("domain", "verified", "shown", "reason"),
    [
        (
            "enforce-expired",
            "none",
            "no TLS, MTA-STS enforce",
            f"the certificate is refused: certificate has expired; {DEMANDED}",
        ),
        (
            "enforce-other-name",
            "chain",
            "TLSv1.3, certificate for another name, MTA-STS enforce",
            f"for wrong-name.invalid, not mx1.enforce-other-name.test; {DEMANDED}",
        ),
        (
            "enforce-plain",
            "none",
            "no TLS, MTA-STS enforce",
            f"the host does not offer STARTTLS, and TLS is required; {DEMANDED}",
        ),
        (
            "dane-wrong",
            "none",
            "TLSv1.3, certificate not verified, DANE",
            "the certificate matches none of 1 TLSA records: it is 3 1 1 ",
        ),
        ("dane-servfail", "none", "", "mx1.dane-servfail.test: its TLSA records are not known"),
    ],
)
def test_domains_whose_mail_waits(
    relay: DevProcess, domain: str, verified: str, shown: str, reason: str
) -> None:
    attempt, page = attempt_of(relay, f"{domain}.test", "deferred")
    assert (attempt["verified"], attempt["status"]) == (verified, "4.7.5")
    assert shown.removeprefix("TLSv1.3, ") in page  # the cipher comes between
    assert reason in page


def test_no_policy_outlives_its_scenario(relay: DevProcess) -> None:
    toml = {"Content-Type": "application/toml"}
    internet = "/relay/v1/dev/internet"
    before = relay.request("GET", internet).body
    assert attempt_of(relay, "enforce.test", "relayed")[0]["policy"] == "mta-sts: verify"
    for changed, state, policy in [
        ("", "relayed", LAX),
        (
            f'{OTHER_HOST}mta_sts = "enforce"\ncertificate = "expired"\n',
            "deferred",
            "mta-sts: verify",
        ),
        (
            f'{OTHER_HOST}mta_sts = "testing"\ncertificate = "expired"\n',
            "relayed",
            f"{LAX}; mta-sts testing; certificate-expired",
        ),
        (
            f'{OTHER_HOST}mta_sts = "enforce"\naliases = ["also.test"]\n',
            "relayed",
            "mta-sts: verify",
        ),
    ]:
        answer = relay.request("PUT", internet, (SCENARIO + changed).encode(), toml)
        assert answer.status == 200, answer.body
        assert attempt_of(relay, "enforce.test", state)[0]["policy"] == policy
    assert attempt_of(relay, "also.test", "relayed")[0]["verified"] == "name"
    assert relay.request("PUT", internet, before, toml).status == 200
