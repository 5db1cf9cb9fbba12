"""`relay import`, and the program of the page that writes a mailbox as mbox."""

import mailbox
import shutil
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import message

DATA = 65
TOP = Path(__file__).parents[2]
BOB, CAROL = "bob@example.test", "carol@example.test"
MAIL = [
    b"Subject: plain\r\n\r\nHello.\r\n",
    b"Subject: quoting\r\n\r\nFrom here\r\n>From there\r\n\r\nFrom \r\n>>From x\r\n\r\n\r\n",
    b"Subject: =?utf-8?q?=C3=BC?=\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xbc.\r\n",
    b"Subject: long\r\n\r\n" + (b"x" * 990 + b"\r\nFrom ") * 4000 + b"\r\n",
]


@pytest.fixture(scope="module")
def relay() -> Iterator[DevProcess]:
    with DevProcess("--no-demo") as running:
        for content in MAIL:
            running.until_final(running.submit("app@example.test", [BOB], content))
        draft = message(to=["x@a.test"], bcc=["hidden@a.test"], subject="a draft")
        assert running.graph("POST", "/me/messages", draft, token="bob").status == 201
        yield running


def imported(relay: DevProcess, name: str, *paths: Path) -> dict[str, int]:
    words = (*map(str, paths), "--mailbox", f"{name}@example.test", "--create")
    return dict(relay.cli_json("import", *words))


def test_the_program_of_the_page_writes_a_mailbox_as_mbox(
    relay: DevProcess, tmp_path: Path
) -> None:
    shutil.copy(TOP / "docs/examples/to_mbox.py", tmp_path)
    target = tmp_path / "all.mbox"
    words = [sys.executable, "to_mbox.py", str(relay.mailbox_of(BOB)), str(target)]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=60)
    found = mailbox.mbox(str(target), create=False)
    assert sorted(map(str, (one["subject"] for one in found))) == sorted(
        ["=?utf-8?q?=C3=BC?=", "a draft", "long", "plain", "quoting"]
    )
    found.close()
    assert imported(relay, "from-mbox", target) == {"imported": 5, "present": 0, "no_mail": 0}
    again = imported(relay, "from-mbox", target)
    assert again == {"imported": 0, "present": 5, "no_mail": 0}


def test_files_of_other_programs_are_imported(relay: DevProcess, tmp_path: Path) -> None:
    one = EmailMessage()
    one["Subject"], one["X-Relay-Id"] = "theirs", "0123456789abcdef"
    one.set_content("From a far country\n")
    mbox = mailbox.mbox(str(tmp_path / "theirs"))
    mbox.add(one)
    mbox.add(b"Subject: second\n\nno line end")
    mbox.close()
    maildir = mailbox.Maildir(str(tmp_path / "maildir"))
    seen = mailbox.MaildirMessage(b"Subject: seen\n\nx\n")
    seen.set_subdir("cur")
    seen.set_flags("FS")
    maildir.add(seen)
    paths = (tmp_path / "theirs", tmp_path / "maildir")
    assert imported(relay, "theirs", *paths) == {"imported": 3, "present": 0, "no_mail": 0}
    found = {each["subject"]: each for each in relay.messages("inbox", token="theirs")}
    assert {name: each["isRead"] for name, each in found.items()} == {
        "theirs": False,
        "second": False,
        "seen": True,
    }
    assert found["seen"]["flag"]["flagStatus"] == "flagged"
    assert found["theirs"]["id"] != "0123456789abcdef"


def test_what_is_no_mail_is_named_and_left_out(relay: DevProcess, tmp_path: Path) -> None:
    for name in ("a", "c"):
        (tmp_path / f"{name}.eml").write_text(f"Subject: {name}\n\nx\n")
    bad = {
        "b1.eml": (b"", "found no octets, expected a message"),
        "b2.eml": (b"\x89PNG\r\n", "found '\\\\x89PNG', expected the header of a message"),
        "b3.eml": (
            b"From a@b Thu Jan  1 00:00:00 1970\nSubject: x\n\ny\n\nFrom a\nno header\n",
            ":6: found",
        ),
    }
    for name, (octets, _) in bad.items():
        (tmp_path / name).write_bytes(octets)
    done = relay.cli("import", str(tmp_path), "--mailbox", CAROL, "--create")
    told = "found 6: imported 3 messages, left out 3\n"
    assert (done.returncode, done.stdout) == (DATA, told)
    for name, (_, text) in bad.items():
        assert str(tmp_path / name) in done.stderr
        assert text in done.stderr
    assert [*relay.mailbox_of(CAROL).glob("tmp/*")] == []


def test_folders_of_a_maildir_go_below_the_named_folder(relay: DevProcess, tmp_path: Path) -> None:
    for folder in ("", ".Sent", ".Archive.2025"):
        for directory in ("cur", "new"):
            (tmp_path / folder / directory).mkdir(parents=True)
        (tmp_path / folder / "cur/1.x.host:2,S").write_text(f"Subject: in {folder}\n\nx\n")
    (tmp_path / ".Linked").symlink_to(tmp_path / ".Sent")
    words = ("import", str(tmp_path), "--mailbox", CAROL, "--folder", "Archive")
    done = relay.cli(*words)
    told = "found 4: imported 3 messages, left out 1\n"
    assert (done.returncode, done.stdout) == (DATA, told)
    assert f"left out {tmp_path / '.Linked'}: found a symbolic link" in done.stderr
    (tmp_path / ".Linked").unlink()
    done = relay.cli(*words)
    told = "found 3: imported 0 messages, 3 were there already\n"
    assert (done.returncode, done.stdout) == (0, told)
    root = relay.mailbox_of(CAROL)
    for folder in (".Archive", ".Archive.Sent", ".Archive.Archive.2025"):
        assert [*(root / folder / "cur").iterdir()]
    below = relay.graph("GET", "/me/mailFolders/archive/childFolders", token="carol").json()
    assert {(each["displayName"], each["totalItemCount"]) for each in below["value"]} == {
        ("Sent", 1),
        ("Archive", 0),
    }
