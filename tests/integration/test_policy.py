"""Mail-flow rules from end to end: recipients, journeys and bounces."""

import smtplib
from email import message_from_bytes
from email.message import Message

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received
from tests.support.reports import report_about, reports_of

RULES = """
[[rule]]
name = "secret copy"
when = { subject = ["copy*"] }
then = [ { bcc = ["archive@a.test"] }, { cc = ["carol@example.test"] } ]

[[rule]]
name = "moved"
when = { recipient = ["old@a.test"] }
then = [ { redirect = ["new@a.test"] } ]

[[rule]]
name = "mark"
when = { subject = ["mark*"] }
then = [
  { subject_prefix = "[Größe] " },
  { set_header = { name = "X-Marked", value = "yes" } },
  { remove_header = ["X-Internal"] },
]

[[rule]]
name = "dropped"
when = { recipient = ["void@a.test"] }
then = [ { discard = true } ]

[[rule]]
name = "refused"
when = { recipient = ["refused@a.test"] }
then = [ { reject = "5.7.1 Not to this one" } ]

[[rule]]
name = "only watched"
mode = "audit"
when = { subject = ["watched*"] }
then = [ { reject = "5.7.1 never said" } ]
"""


class Setting:
    """One relay with the rules above, and one domain."""

    def __init__(self, remotes: Remotes, remote: RemoteMx, relay: RelayProcess) -> None:
        self.remotes, self.remote, self.relay = remotes, remote, relay

    def parsed(self, address: str) -> Message:
        return message_from_bytes(received(self.remote, address).content)


@pytest.fixture(scope="module")
def setting(remotes_module, serve_module) -> Setting:
    remote = remotes_module.start("a.test")
    return Setting(
        remotes_module, remote, serve_module(remotes_module, policies={"10-rules.toml": RULES})
    )


def content(subject: str, *fields: str) -> bytes:
    lines = [f"Subject: {subject}", "From: alice@example.test", *fields, "", "Hello.", ""]
    return "\r\n".join(lines).encode()


def test_bcc_and_cc_actions_add_recipients_that_the_sender_cannot_see(setting: Setting) -> None:
    relay = setting.relay
    identity = relay.send_mail(to=["copied@a.test"], subject="copy this")
    journey = relay.until_final(identity)
    received(setting.remote, "archive@a.test")
    until("carol has it", lambda: relay.subjects("carol") == ["copy this"])
    assert received(setting.remote, "archive@a.test").parameters.get("NOTIFY") is None
    mine = relay.graph("GET", f"/relay/v1/messages/{identity}")
    assert mine.status == 200
    assert [one["address"] for one in mine.json()["recipients"]] == ["copied@a.test"]
    assert b"archive@a.test" not in mine.body
    assert {one["address"] for one in journey["recipients"]} >= {"copied@a.test"}
    assert b"archive" not in setting.parsed("copied@a.test").as_bytes()
    assert "carol@example.test" in str(setting.parsed("copied@a.test")["cc"])


def test_redirected_changed_discarded_and_watched_mail(setting: Setting) -> None:
    relay, remote = setting.relay, setting.remote
    to = ["old@a.test", "void@a.test", "audit@a.test"]
    identity = relay.submit("alice@example.test", to, content("watched"))
    journey = relay.until_final(identity)
    received(remote, "new@a.test")
    states = {one["address"]: one["state"] for one in journey["recipients"]}
    assert (states["old@a.test"], states["void@a.test"]) == ("redirected", "discarded")
    assert not remote.received("old@a.test") + remote.received("void@a.test")
    assert not any("void@a.test" in report.recipients for report in reports_of(relay))
    (rules,) = [one["detail"]["rules"] for one in journey["steps"] if one["step"] == 5]
    assert "only watched" in [one["rule"] for one in rules]
    assert relay.metric("relay_policy_rule_total", rule="only watched") == 1
    relay.submit("alice@example.test", ["mark@a.test"], content("mark me", "X-Internal: 1"))
    found = setting.parsed("mark@a.test")
    assert (found["x-marked"], found["x-internal"]) == ("yes", None)
    assert "mark me" in str(found["subject"])
    assert str(found["subject"]).isascii()
    assert str(found["subject"]) != "mark me"


def test_a_rejected_submission_bounces(setting: Setting) -> None:
    relay = setting.relay
    identity = relay.send_mail(to=["refused@a.test", "accepted@a.test"], subject="half")
    states = {one["address"]: one["state"] for one in relay.until_final(identity)["recipients"]}
    assert states == {"refused@a.test": "failed", "accepted@a.test": "relayed"}
    report = report_about(relay, "refused@a.test")
    assert report.recipients.keys() == {"refused@a.test"}
    assert report.recipients["refused@a.test"]["status"] == "5.7.1"
    assert "Not to this one" in report.recipients["refused@a.test"]["diagnostic-code"]
    assert "remote-mta" not in report.recipients["refused@a.test"]
    assert relay.metric("relay_reports_total", kind="failure") >= 1
    assert report.failed_addresses == {"refused@a.test"}


def test_a_rejection_is_the_smtp_reply(setting: Setting) -> None:
    relay = setting.relay
    with relay.smtp() as session:
        session.ehlo()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            session.sendmail("bob@example.test", ["refused@a.test"], content("no"))
        assert refused.value.smtp_code // 100 == 5
        assert b"Not to this one" in refused.value.smtp_error
        assert session.noop()[0] == 250
    assert reports_of(relay, "bob") == []
