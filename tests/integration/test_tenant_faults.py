"""A service with a tenant whose rules have a fault: replies, readiness, metrics, commands."""

import shutil
from pathlib import Path

import pytest

from tests.support.relay_process import RelayProcess

GOOD = '[[rule]]\nname = "mark"\nthen = [ { subject_prefix = "[x]" } ]\n'
AGE = "relay_policy_set_age_seconds"
FAULTY = "\n[[rules]]\n"


@pytest.fixture
def relay():
    relay = RelayProcess()
    domains = ["example.test", "other.test"]
    tenant = {"name": "acme", "domains": ["other.test"]}
    mailboxes = relay.config["mailboxes"] | {"domains": domains, "catch_all": "bob@example.test"}
    relay.write_config(relay.config | {"mailboxes": mailboxes, "tenant": [tenant]})
    (relay.folder / "policies/acme").mkdir()
    with relay:
        yield relay


def write(relay: RelayProcess, text: str) -> str:
    file = relay.folder / "policies/acme/10.toml"
    file.write_text(text)
    return f"{file}:2: rules: found an unknown key"


def reply_to(relay: RelayProcess, address: str) -> tuple[int, bytes]:
    with relay.smtp() as client:
        client.ehlo()
        client.mail("x@far.test")
        return client.rcpt(address)


def ready(relay: RelayProcess) -> tuple[int, str]:
    answer = relay.request("GET", "/readyz")
    return answer.status, answer.body.decode().strip()


def test_mail_waits_for_rules_and_all_other_mail_does_not(relay):
    fault = write(relay, FAULTY)
    (relay.folder / "state/policies/acme/empty").rename(relay.folder / "state/policies/acme/x")
    relay.restart()
    code, text = reply_to(relay, "a@other.test")
    assert (code, text[:6]) == (451, b"4.3.0 ")
    assert reply_to(relay, "alice@example.test")[0] == 250
    assert ready(relay) == (200, "ready; mail of the tenants acme waits for their rules")
    assert relay.metric(AGE, tenant="acme") > 0
    for words in (("check",), ("policy", "check")):
        done = relay.cli(*words)
        assert done.returncode == 78
        assert fault in done.stdout + done.stderr
    write(relay, GOOD)
    assert relay.cli("reload").returncode == 0
    assert reply_to(relay, "a@other.test")[0] == 250
    assert (ready(relay), relay.metric(AGE, tenant="acme")) == ((200, "ready"), 0)
    assert "acme/mark: subject_prefix" in relay.cli("policy", "check").stdout


def test_a_restoration_has_the_last_good_rules(relay: RelayProcess, tmp_path: Path) -> None:
    write(relay, GOOD)
    assert relay.cli("reload").returncode == 0
    fault = write(relay, FAULTY)
    assert relay.cli("backup", str(tmp_path / "copy")).returncode == 0
    relay.stop()
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name)
    done = relay.cli("restore", str(tmp_path / "copy"))
    assert done.returncode == 78  # that of the check
    assert "the mail is restored" in done.stdout + done.stderr
    assert fault in done.stdout + done.stderr
    relay.start()
    assert ready(relay) == (200, "ready; old rules are in force for the tenants acme")
    assert reply_to(relay, "a@other.test")[0] == 250
    write(relay, GOOD)
    assert relay.cli("reload").returncode == 0
    assert ready(relay) == (200, "ready")
