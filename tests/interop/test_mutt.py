"""mutt on a mailbox of Relay's: it sees what is there, and what it does is seen over HTTP."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import program
from tests.support.mutt import run_mutt
from tests.support.relay_process import until

Press = Callable[..., None]


@pytest.fixture
def press(relay, tmp_path) -> Press:
    """Let mutt open a folder of alice's mailbox and press keys, the last of which end it."""
    command = program("mutt")
    assert relay.graph("GET", "/me/mailFolders").status == 200  # makes the mailbox

    def run(keys: str, folder: str = "") -> None:
        run_mutt(command, keys, home=relay.home("alice"), folder=folder, work=tmp_path)

    return run


def pipes_all_to(file: Path) -> str:
    """Keys that write all messages, as they are, one behind the other into a file."""
    return f"<tag-pattern>~A<enter><tag-prefix><pipe-message>cat >>{file}<enter><exit>"


def lines(file: Path) -> bytes:
    """A file's content with the line ends that mutt writes."""
    return file.read_bytes().replace(b"\r\n", b"\n")


def arrive(relay, *subjects: str) -> None:
    for subject in subjects:
        content = f"Subject: {subject}\r\n\r\nx\r\n".encode()
        relay.until_final(relay.submit("g@remote.test", ["alice@example.test"], content))


def by_subject(relay) -> dict[str, dict]:
    every = relay.graph("GET", "/me/messages?$top=100").json()["value"]
    return {one["subject"]: one for one in every}


def test_it_reads_every_line(relay, press, tmp_path):
    arrive(relay, "first", "second")
    relay.graph("POST", "/me/messages", {"subject": "Entwurf", "body": {"content": "<b>Größe</b>"}})
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="sent"))
    for folder in ("", ".Drafts", ".Sent"):
        press(pipes_all_to(tmp_path / f"seen{folder}"), folder)
        files = sorted((relay.home("alice") / folder).glob("[cn][ue][rw]/*"))
        seen = lines(tmp_path / f"seen{folder}")
        assert files
        assert all(lines(file) in seen for file in files)


def test_its_flags_are_seen(relay, press):
    arrive(relay, "first", "second", "third")
    press("<flag-message><toggle-new><next-entry><delete-message><next-entry><toggle-new><quit>")
    found = by_subject(relay)
    flags = {one: (found[one]["isRead"], found[one]["flag"]["flagStatus"]) for one in found}
    assert flags == {"first": (True, "flagged"), "third": (True, "notFlagged")}


def test_a_message_that_it_saves_elsewhere_is_the_same(relay, press):
    arrive(relay, "first", "second")
    before = by_subject(relay)
    press("<next-entry><save-message>=.Archive<enter><quit>")
    after = by_subject(relay)
    places = {subject: one["parentFolderId"] for subject, one in after.items()}
    assert places == {"first": "inbox", "second": "archive"}
    assert after["first"]["id"] == before["first"]["id"]
    assert after["second"]["id"] == before["second"]["id"]


def test_it_shows_a_report_and_a_read_receipt(relay, press, tmp_path):
    relay.until_final(relay.send_mail(to=["nobody@example.test"], subject="lunch"))
    asking = "Disposition-Notification-To: alice@example.test\r\nAccept-Language: de\r\n"
    content = f"{asking}Subject: lunch\r\n\r\nx\r\n".encode()
    relay.until_final(relay.submit("alice@example.test", ["bob@example.test"], content))
    [copy] = relay.messages("inbox", token="bob")
    relay.graph("PATCH", f"/me/messages/{copy['id']}", {"isRead": True}, token="bob")
    until("both", lambda: len(relay.subjects("alice")) == 2)
    press("<display-message><next-entry><display-message><quit>")
    receipt, _, report = (tmp_path / "shown").read_text().partition("Undeliverable: lunch")
    assert "Read: lunch" in receipt
    refused = "nobody@example.test\n    The address was not found at example.test.\n"
    for shown, said in (
        (receipt, "als gelesen markiert:\n\n  bob@example.test\n"),
        (report, f"to this recipient:\n\n  {refused}"),
    ):
        assert said in shown.partition("[-- Attachment #2 --]")[0], shown
        assert "<html" not in shown
