"""Mail-flow rules from end to end: recipients, journeys and bounces."""

import json
import re
import smtplib
from collections.abc import Iterator
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
def setting() -> Iterator[Setting]:
    with Remotes() as remotes:
        remote = remotes.start("a.test")
        with remotes.relay(policies={"10-rules.toml": RULES}) as relay:
            yield Setting(remotes, remote, relay)


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


def test_a_redirected_recipient_is_replaced(setting: Setting) -> None:
    identity = setting.relay.send_mail(to=["old@a.test"], subject="moves")
    received(setting.remote, "new@a.test")
    states = {one["address"]: one for one in setting.relay.until_final(identity)["recipients"]}
    assert states["old@a.test"]["state"] == "redirected"
    assert not setting.remote.received("old@a.test")


def test_header_actions(setting: Setting) -> None:
    marked = content("mark me", "X-Internal: 1", "To: header@a.test")
    setting.relay.submit("alice@example.test", ["header@a.test"], marked)
    found = setting.parsed("header@a.test")
    assert found["x-marked"] == "yes"
    assert found["x-internal"] is None
    assert "mark me" in str(found["subject"])
    assert str(found["subject"]).isascii()
    assert str(found["subject"]) != "mark me"
    assert found["to"] == "header@a.test"


def test_discarded_mail_is_removed_without_a_bounce(setting: Setting) -> None:
    identity = setting.relay.send_mail(to=["void@a.test"], subject="into the void")
    assert setting.relay.until_final(identity)["state"] == "discarded"
    assert not setting.remote.received("void@a.test")
    assert not any("void@a.test" in report.recipients for report in reports_of(setting.relay))


def test_an_audited_rule_changes_nothing(setting: Setting) -> None:
    identity = setting.relay.send_mail(to=["audit@a.test"], subject="watched")
    received(setting.remote, "audit@a.test")
    journey = setting.relay.until_final(identity)
    (rules,) = [one["detail"]["rules"] for one in journey["steps"] if one["step"] == 5]
    assert [one["rule"] for one in rules] == ["only watched"]
    assert setting.relay.metric("relay_policy_rule_total", rule="only watched") == 1


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


def test_policy_diff_takes_envelopes_from_journeys(setting: Setting) -> None:
    """Of a Bcc, an alias's name in To and a client; a copy whose journey is another's has none."""
    relay = setting.relay
    identity = relay.send_mail(
        to=["bob@example.test"], bccRecipients=[{"emailAddress": {"address": "hidden@a.test"}}],
        subject="for the diff",
    )  # fmt: skip
    relay.until_final(identity)
    old, new = relay.folder / "old", relay.folder / "new"
    for folder in (old, new):
        folder.mkdir()
    rule = '[[rule]]\nname = "r"\nwhen = { recipient = "hidden@a.test", source = "graph", login = "alice@*" }\n'
    (new / "10.toml").write_text(rule + 'then = [ { hold = "x" } ]\n')

    def compared() -> dict[str, int]:
        done = relay.cli(
            "policy", "diff", str(old), str(new), "--mail", str(relay.home("bob")), "--json"
        )
        sums = json.loads(done.stdout.splitlines()[-1])
        return {"changed": sums["changed"], **sums["envelopes"]}

    before = relay.journey(identity)
    assert compared() == {"changed": 1, "journey": 1}
    assert relay.journey(identity) == before
    [file] = relay.home("bob").glob("new/*")
    file.write_bytes(
        re.sub(rb"X-Relay-Id: \w+", b"X-Relay-Id: l222222222222222", file.read_bytes())
    )
    assert compared() == {"changed": 0, "header": 1}
