"""Mail that Relay signs, as a receiver reads it: from each way in, of each fork, and the reports; and what is not signed."""

import base64
import email.policy
import smtplib
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from tests.support.dkim import DkimKeys, foreign, named_keys, routing_of, signatures
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import received

ALICE, BOB = "alice@example.test", "bob@example.test"
STRANGER = "127.0.0.9"
LATER = "451 4.3.2 come again"
FORGED = b"From: Alice <alice@example.test>\r\nSubject: hello\r\n\r\nHello.\r\n"
RULES = """
[[rule]]
name = "tag"
when = { recipient = "*tagged*" }
then = [ { subject_prefix = "[OUT]" } ]

[[rule]]
name = "disclaimer"
when = { recipient = "*disclaimed*" }
then = [ { disclaimer = { text = "Nur für Sie" } } ]

[[rule]]
name = "partner"
when = { recipient = "*as-partner*" }
then = [ { set_header = { name = "From", value = "alice@partner.test" } } ]

[[rule]]
name = "nobody"
when = { recipient = "*as-nobody*" }
then = [ { set_header = { name = "From", value = "alice@nokey.test" } } ]

[[rule]]
name = "printer"
when = { sender = "root@printer.lan" }
then = [ { set_sender = "dave@example.test" } ]

[[rule]]
name = "hold"
when = { recipient = "*held*" }
then = [ { hold = "somebody reads it" } ]
notice = "Your message waits."

[[rule]]
name = "redirect"
when = { recipient = "dave@example.test" }
then = [ { redirect = "dave@a.test" } ]

[[rule]]
name = "bcc"
when = { recipient = "carol@example.test" }
then = [ { bcc = "archive@a.test" } ]

[[rule]]
name = "lost"
when = { recipient = "frank@example.test" }
then = [ { bcc = "nobody@a.test" } ]
"""
ALIASES = {
    name: [name.replace("example", "a")] for name in ("office@example.test", "team@example.test")
}


@dataclass(frozen=True)
class Signing:
    """A relay that signs, the host that gets its mail, and the keys of the records that it reads."""

    relay: RelayProcess
    remote: RemoteMx
    keys: DkimKeys

    @property
    def ours(self) -> list[tuple[str, str]]:
        return self.keys.of_domain("example.test")

    def valid(self, address: str, signers: list[tuple[str, str]] | None = None) -> bytes:
        """Wait for the mail of an address; our signatures stand above all other fields, and hold."""
        octets = received(self.remote, address).content
        expected = self.ours if signers is None else signers
        assert self.keys.verified(octets)[: len(expected)] == expected
        if expected:
            assert octets.startswith(b"DKIM-Signature: v=1; a=")
        return octets


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> DkimKeys:
    both = {("example.test", "rsa"): "rsa", ("example.test", "ed"): "ed25519"}
    return DkimKeys.made(tmp_path_factory.mktemp("dkim"), both | {("partner.test", "p"): "ed25519"})


@pytest.fixture(scope="module")
def signing(keys: DkimKeys, remotes_module, serve_module) -> Signing:
    replies = {
        "nobody@a.test": "550 5.1.1 No such user",
        "late@a.test": LATER,
        "never@a.test": LATER,
    }
    remote = remotes_module.start("a.test", rcpt=replies)
    # delay reports of entries that wait; nothing else waits for so long
    delivery = {"retry": [0.2], "delay_warning_after": "1s"}
    forwarding = {"forward_own_from": True}  # strangers' mail in our name
    relay = serve_module(
        remotes_module,
        config=keys.config | {"delivery": delivery, "mailboxes": forwarding},
        policies={"rules.toml": RULES},
        aliases=ALIASES,
        accounts=[account("erin", forward_to=["erin@a.test"]), account("frank")],
    )
    return Signing(relay, remote, keys)


def letter(to: str, subject: str = "hello", sender: str = ALICE) -> bytes:
    return f"From: {sender}\r\nTo: {to}\r\nSubject: {subject}\r\n\r\nHello,\t world. \r\n".encode()


# -- each way in


def with_a_login(relay: RelayProcess, to: str) -> str:
    with relay.smtp(source=STRANGER) as session:
        session.login(ALICE, "alice")
        session.sendmail(ALICE, [to], letter(to))
    return ALICE


def from_a_trusted_network(relay: RelayProcess, to: str) -> str:
    return relay.submit(ALICE, [to], letter(to))


def as_json(relay: RelayProcess, to: str) -> str:
    return relay.send_mail(to=[to], body={"contentType": "html", "content": "<p>Grüße</p>"})


def as_mime(relay: RelayProcess, to: str) -> str:
    sent = {"Content-Type": "text/plain"}
    answer = relay.graph("POST", "/me/sendMail", base64.b64encode(letter(to)), headers=sent)
    assert answer.status == 202, answer.body
    return str(answer.headers["x-relay-message-id"])


def as_a_reply(relay: RelayProcess, to: str) -> str:
    relay.until_final(relay.submit("carol@example.test", [ALICE], letter(ALICE, f"of {to}")))
    [first] = [one for one in relay.messages("inbox") if one["subject"] == f"of {to}"]
    draft = relay.graph("POST", f"/me/messages/{first['id']}/createReply").json()
    people = [{"emailAddress": {"address": to}}]
    path = f"/me/messages/{draft['id']}"
    assert relay.graph("PATCH", path, {"toRecipients": people}).status == 200
    assert relay.graph("POST", f"{path}/send").status == 202
    return str(draft["id"])


def by_sendmail(relay: RelayProcess, to: str) -> str:
    done = relay.sendmail(ALICE, to, text=letter(to).decode())
    assert done.returncode == 0, done.stderr
    return to


WAYS = (with_a_login, from_a_trusted_network, as_json, as_mime, as_a_reply, by_sendmail)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_mail_of_each_way_in_verifies(
    signing: Signing, way: Callable[[RelayProcess, str], str]
) -> None:
    to = f"{way.__name__}@a.test"
    key = way(signing.relay, to)
    octets = signing.valid(to)
    assert signatures(octets) == 2
    assert named_keys(signing.relay.journey(key)) == signing.ours
    algorithms = [one["algorithm"] for one in routing_of(signing.relay.journey(key))["dkim"]]
    assert algorithms == ["rsa-sha256", "ed25519-sha256"]
    if way is as_json:
        assert "signed for example.test (rsa, ed)" in signing.relay.cli("trace", key).stdout
        assert named_keys(signing.relay.cli_json("trace", key)) == signing.ours


def test_arriving_signatures_hold_beside_ours(signing: Signing, tmp_path: Path) -> None:
    theirs = DkimKeys.made(tmp_path, {("list.test", f"s{n}"): "rsa" for n in range(3)})
    content = letter("arriving@a.test")
    for key in theirs.ring.keys:
        content = foreign(content, key)
    signing.relay.submit(ALICE, ["arriving@a.test"], content)
    octets = received(signing.remote, "arriving@a.test").content
    both = DkimKeys(type(theirs.ring)([*signing.keys.ring.keys, *theirs.ring.keys]))
    assert both.verified(octets) == [*signing.ours, *reversed(theirs.of_domain("list.test"))]


# -- rules


def test_each_fork_is_signed_and_equal_contents_share_their_signatures(signing: Signing) -> None:
    names = ("plain", "plain2", "tagged", "tagged2", "disclaimed", "tagged-disclaimed")
    addresses = [f"{name}.fork@a.test" for name in names]
    before = signing.relay.metric("relay_dkim_signatures_total", result="signed")
    key = signing.relay.submit(ALICE, addresses, letter(", ".join(addresses)))
    plain, plain2, tagged, tagged2, disclaimed, both = map(signing.valid, addresses)
    assert (plain, tagged) == (plain2, tagged2)
    assert b"Subject: hello" in plain
    assert b"Subject: [OUT] hello" in tagged
    assert b"Subject: hello" in disclaimed
    assert (b"[OUT]" in both, signatures(both)) == (True, 2)
    fields = [one[: one.index(b"Received:")] for one in (plain, tagged, disclaimed, both)]
    assert len(set(fields)) == 4
    # the forks of a change of the header have the same body
    bodies = [one.partition(b"bh=")[2].partition(b";")[0] for one in fields]
    assert bodies[0] == bodies[1] != bodies[2] == bodies[3]
    made = signing.relay.metric("relay_dkim_signatures_total", result="signed") - before
    assert made == 4 * 2
    assert named_keys(signing.relay.journey(key)) == signing.ours


def test_the_author_that_a_rule_writes_decides_who_signs(signing: Signing) -> None:
    partner = signing.relay.submit(ALICE, ["as-partner@a.test"], letter("as-partner@a.test"))
    signing.valid("as-partner@a.test", [("partner.test", "p")])
    assert named_keys(signing.relay.journey(partner)) == [("partner.test", "p")]
    nobody = signing.relay.submit(ALICE, ["as-nobody@a.test"], letter("as-nobody@a.test"))
    assert signatures(signing.valid("as-nobody@a.test", [])) == 0
    found = routing_of(signing.relay.until_final(nobody))
    assert found["unsigned"] == "no signing key for nokey.test"
    assert "dkim" not in found
    addresses = ["plain.both@a.test", "as-nobody.both@a.test", "as-partner.both@a.test"]
    both = signing.relay.submit(ALICE, addresses, letter(addresses[0]))
    for address, signers in zip(
        addresses, (signing.ours, [], [("partner.test", "p")]), strict=True
    ):
        signing.valid(address, signers)
    found = routing_of(signing.relay.until_final(both))
    assert found["unsigned"] == "no signing key for nokey.test"
    assert named_keys(signing.relay.journey(both)) == [*signing.ours, ("partner.test", "p")]


# -- reports


def report_of(signing: Signing, address: str) -> bytes:
    """The signed report that an address of the remote host gets; From is the relay's own."""
    octets = signing.valid(address)
    assert b"MAILER-DAEMON@relay.example.test" in octets
    assert signatures(octets) == 2
    return octets


def reported(signing: Signing, sender: str, to: str, **more: Any) -> str:
    """Submit mail whose reports go to a sender at the remote host; return its queue id."""
    return signing.relay.submit(sender, [to], letter(to, sender=sender), **more)


@pytest.mark.parametrize(
    ("sender", "to", "found", "options"),
    [
        ("failure@a.test", "nobody@a.test", b"Action: failed", []),
        ("delay@a.test", "late@a.test", b"Action: delayed", []),
        ("success@a.test", BOB, b"Action: delivered", ["NOTIFY=SUCCESS"]),
        ("notice@a.test", "held.notice@a.test", b"Subject: Held: hello", []),
    ],
)
def test_a_report_verifies(signing, sender: str, to: str, found: bytes, options: list[str]) -> None:
    key = reported(signing, sender, to, rcpt_options=options)
    assert found in report_of(signing, sender)
    signing.relay.cli("queue", "cancel", key)


def test_a_read_receipt_verifies(signing: Signing) -> None:
    asks = b"Disposition-Notification-To: asker@a.test\r\nMessage-ID: <asks@a.test>\r\n"
    content = asks + letter(BOB, "read this", "asker@a.test")
    signing.relay.until_final(signing.relay.submit("asker@a.test", [BOB], content))
    [one] = [
        one for one in signing.relay.messages("inbox", token="bob") if one["subject"] == "read this"
    ]
    answer = signing.relay.graph(
        "PATCH",
        f"/me/messages/{one['id']}",
        {"isRead": True},
        token="bob",
        headers={"Prefer": "relay.read-receipt=send"},
    )
    assert answer.status == 200, answer.body
    octets = signing.valid("asker@a.test")
    receipt = message_from_bytes(octets, policy=email.policy.default)
    assert receipt["from"].addresses[0].addr_spec == BOB
    assert receipt["content-type"].params["report-type"] == "disposition-notification"


def test_the_report_of_a_cancel_verifies(signing: Signing) -> None:
    sender = "cancel@a.test"
    key = reported(signing, sender, f"held.{sender}")
    report_of(signing, sender)  # the notice
    done = signing.relay.cli("queue", "cancel", key, "--bounce", "--text", "not today")
    assert done.returncode == 0, done.stderr
    until("the report", lambda: len(signing.remote.received(sender)) == 2)
    octets = signing.remote.received(sender)[1].content
    assert b"not today" in octets
    assert signing.keys.verified(octets) == signing.ours


def test_the_report_of_pickup_in_the_inbox_verifies(signing: Signing) -> None:
    looping = b"Received: from a by b; Fri, 20 Nov 2026 09:00:00 +0000\r\n" * 101
    sent = base64.b64encode(looping + letter("looping@a.test", "looping"))
    answer = signing.relay.graph(
        "POST", "/me/sendMail", sent, headers={"Content-Type": "text/plain"}, token="alice"
    )
    assert answer.status == 202, answer.body

    def report() -> list[bytes]:
        files = [one.read_bytes() for one in signing.relay.home("alice").glob("[nc]*/*")]
        return [one for one in files if b"Undeliverable: looping" in one]

    [octets] = until("the report", report)
    first = [line.partition(b":")[0] for line in octets.splitlines()[:3]]
    assert first == [b"Return-Path", b"X-Relay-Id", b"DKIM-Signature"]
    assert signing.keys.verified(octets) == signing.ours


def test_own_mail_that_an_alias_sends_on_is_signed(signing: Signing) -> None:
    key = signing.relay.submit(ALICE, ["team@example.test"], letter("team@example.test"))
    octets = received(signing.remote, "team@a.test").content
    named, _, signed = octets.partition(b"\r\n")
    assert (named, signed[:15]) == (b"Delivered-To: team@example.test", b"DKIM-Signature:")
    assert signing.keys.verified(octets) == signing.ours == named_keys(signing.relay.journey(key))


# -- what is not signed


@pytest.mark.parametrize(
    ("named", "leads_to"),
    [
        ("office@example.test", "office@a.test"),  # an alias
        ("erin@example.test", "erin@a.test"),  # forward_to of an account
        ("dave@example.test", "dave@a.test"),  # a redirect of a rule
        ("carol@example.test", "archive@a.test"),  # a bcc of a rule
    ],
    ids=["alias", "forward_to", "redirect", "bcc"],
)
def test_mail_of_strangers_is_not_signed(signing: Signing, named: str, leads_to: str) -> None:
    """Its author is one of our own domain, as it says."""
    key = signing.relay.submit("eve@other.test", [named], FORGED, source=STRANGER)
    octets = received(signing.remote, leads_to).content
    assert signatures(octets) == 0
    assert octets.endswith(FORGED)
    found = routing_of(signing.relay.journey(key))
    assert found["unsigned"] == "the client is not trusted"
    assert "dkim" not in found


def test_reports_in_the_dead_letter_mailbox_are_signed(signing: Signing) -> None:
    """Reports: to a sender that does not exist, and on whom a rule added to a stranger's message."""

    def letters(wanted: bytes) -> list[bytes]:
        folder = signing.relay.folder / "state/dead-letter"
        files = [one.read_bytes() for one in folder.glob("[nc]*/*")]
        return [one for one in files if wanted in one]

    signing.relay.until_final(reported(signing, "nobody@a.test", "nobody@a.test"))
    [report] = until("the report", lambda: letters(b"multipart/report"))
    assert signing.keys.verified(report) == signing.ours
    signing.relay.submit("eve@other.test", ["frank@example.test"], FORGED, source=STRANGER)
    [letter] = until("the stranger's", lambda: letters(FORGED))
    assert signing.keys.verified(letter) == signing.ours


# -- relay dev


def test_a_development_relay_signs_for_any_sender(keys: DkimKeys, kit) -> None:
    """A login may send from any address there."""
    relay = kit(config=keys.config)
    for sender, signers in ((ALICE, keys.of_domain("example.test")), ("x@nokey.test", [])):
        with smtplib.SMTP(*relay.smtp) as session:
            session.login("shop", "any")
            session.sendmail(sender, [BOB], letter(BOB, "hello", sender))
        message = relay.mailbox(BOB).wait_for(subject="hello")
        assert keys.verified(message.source) == signers == named_keys(message.journey)
        relay.reset()


def test_a_rule_sets_the_sender_of_a_device_which_is_signed_and_gets_the_reports(
    signing: Signing,
) -> None:
    relay, device = signing.relay, "root@printer.lan"
    mail = letter("printed@a.test", "scan", '"Printer, 3rd floor" <root@printer.lan>')
    before = len(relay.subjects("dave"))
    queue_id = relay.submit(device, ["printed@a.test", "nobody@a.test"], mail)
    octets = signing.valid("printed@a.test")
    message = message_from_bytes(octets, policy=email.policy.default)
    assert message["From"] == '"Printer, 3rd floor" <dave@example.test>'
    (envelope,) = [one for one in signing.remote.envelopes if "printed@a.test" in one.addresses]
    assert envelope.reverse_path == "dave@example.test"
    until("the report", lambda: len(relay.subjects("dave")) > before)
    journey = relay.journey(queue_id)
    assert journey["sender"] == "dave@example.test"
    (routing,) = [one["detail"] for one in journey["steps"] if one["step"] == 5]
    assert routing["sender"] == {"from": device, "to": "dave@example.test"}
    assert [one["outcome"] for one in routing["rules"]] == ["set_sender"]
