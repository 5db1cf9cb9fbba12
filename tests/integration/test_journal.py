"""Journal reports and notices in a real relay: an archive that refuses them, and who learns of them."""

import email

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

BOB = "bob@example.test"
ARCHIVE = "journal@archive.test"


def rules(journal: str) -> dict[str, str]:
    text = f"""
[[rule]]
name = "kept"
then = [ {{ subject_prefix = "[K]" }}, {{ journal = "{journal}" }} ]

[[rule]]
name = "told"
then = [ {{ notify = {{ to = "carol@example.test", text = "Look." }} }} ]
"""
    return {"10.toml": text}


def test_an_archive_that_refuses_gets_its_report_later(remotes: Remotes, serve) -> None:
    host = remotes.start("archive.test", rcpt={ARCHIVE: ["550 5.1.1 no such user", "250 2.1.5 ok"]})
    relay = serve(remotes, policies=rules(ARCHIVE))
    identity = relay.send_mail(subject="hello", to=[BOB])
    assert relay.until_final(identity)["state"] == "delivered"
    assert b"X-MS-Journal-Report:" in received(host, ARCHIVE).content
    until("the queue is empty", lambda: not relay.queue())
    seen = relay.journey(identity)
    (routed,) = [one["detail"] for one in seen["steps"] if one["step"] == 5]
    kept, told = routed["mails"]
    assert (kept["kind"], kept["to"], kept["rules"]) == ("journal", ARCHIVE, ["kept"])
    assert (told["kind"], told["to"]) == ("notify", "carol@example.test")
    report = relay.journey(kept["queue_id"])
    assert [one["outcome"] for one in report["recipients"][0]["attempts"]] == [
        "deferred",
        "relayed",
    ]
    assert relay.subjects("carol") == ["Notice: hello"]
    assert relay.subjects("bob") == ["[K] hello"]
    assert relay.subjects("alice") == []  # nothing is reported
    for reports in ("journal", "notify"):
        assert relay.metric("relay_reports_total", kind=reports) == 1
    check_who_learns(relay, identity, kept["queue_id"])
    assert relay.faults() == []


def test_the_report_of_a_large_message_has_it_octet_for_octet(remotes: Remotes, serve) -> None:
    body = b"Hello, \xfc.\r\n" + b"0123456789abcdef" * 60 + b"\r\n"
    relay = serve(remotes, policies=rules("dave@example.test"))
    relay.submit("x@b.test", [BOB], b"Subject: large\r\n\r\n" + body * 3000)
    until("both are delivered", lambda: relay.maildir("dave") and relay.maildir("bob"))
    (file,) = (relay.home("dave") / "new").iterdir()
    report, (copy,) = file.read_bytes(), (relay.home("bob") / "new").iterdir()
    boundary = email.message_from_bytes(report).get_boundary()
    original = report.split(f"\r\n--{boundary}".encode())[2].partition(b"\r\n\r\n")[2]
    delivered = copy.read_bytes().replace(b"Subject: [K] ", b"Subject: ")
    assert original == delivered.split(b"Delivered-To: bob@example.test\r\n")[1]
    assert len(original) > 2_000_000
    assert relay.faults() == []


def check_who_learns(relay: RelayProcess, identity: str, report: str) -> None:
    """Its account sees the rule's other action only; an operator all."""
    for token, hidden in (("alice", True), (OPERATOR, False)):
        path = f"/relay/v1/messages/{identity}"
        texts = [
            str(relay.graph("GET", path, token=token).json()),
            str(relay.graph("GET", "/relay/v1/messages", token=token).json()),
        ]
        for text in texts:
            assert "subject_prefix" in text
            for word in ("journal", ARCHIVE, "notify", "carol", "told"):
                assert (word in text) is not hidden, (token, word)
    assert relay.graph("GET", f"/relay/v1/messages/{report}", token="alice").status == 404
    out = relay.cli("trace", identity).stdout
    assert f"journal report {report} to {ARCHIVE}: kept" in out


@pytest.mark.parametrize("journal", ["nobody@example.test", "x@refused.test"])
def test_an_unknown_address_waits_and_its_report_goes_to_the_postmaster(
    remotes: Remotes, journal: str, serve
) -> None:
    config = {
        "delivery": {"expire_after": "1.5s", "retry": [0.2]},
        "route": [{"domain": "refused.test", "next_hop": "reject:5.7.1 not there"}],
    }
    relay = serve(remotes, policies=rules(journal), config=config)
    queue_id = relay.submit("x@b.test", [BOB], b"Subject: hello\r\n\r\nx\r\n")
    (waiting,) = until("it waits", lambda: [o for o in relay.queue() if o["state"] == "deferred"])
    assert "550 5.1.1" in str(waiting)
    assert waiting["sender"] == ""
    letters = relay.folder / "state/dead-letter/new"
    (letter,) = until("it is with the postmaster", lambda: list(letters.glob("*")))
    assert b"X-MS-Journal-Report:" in letter.read_bytes()
    until("the queue is empty", lambda: not relay.queue())
    assert relay.states(queue_id) == {BOB: "delivered"}
    assert relay.subjects("bob") == ["[K] hello"]
    assert relay.faults() == []
