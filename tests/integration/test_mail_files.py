"""`relay import` and `relay export`: mail goes from a mailbox to files and back, octet for octet."""

import hashlib
import mailbox
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import message

USAGE, DATA, NO_INPUT = 64, 65, 66
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


def bodies(relay: DevProcess, token: str, folder: str = "inbox") -> list[str]:
    """Digests of the bodies of a folder's messages."""
    found = []
    for one in relay.messages(folder, token=token):
        octets = relay.graph("GET", f"/me/messages/{one['id']}/$value", token=token).body
        found.append(hashlib.sha256(octets.partition(b"\r\n\r\n")[2]).hexdigest())
    return sorted(found)


def imported(relay: DevProcess, name: str, *paths: Path) -> dict[str, int]:
    words = (*map(str, paths), "--mailbox", f"{name}@example.test", "--create")
    return dict(relay.cli_json("import", *words))


@pytest.mark.parametrize("kind", ["eml", "mbox", "maildir"])
def test_a_mailbox_comes_back_as_it_was(relay: DevProcess, tmp_path: Path, kind: str) -> None:
    target = tmp_path / ("all.mbox" if kind == "mbox" else "all")
    words = ("--format", kind, "--folder", "inbox")
    assert relay.cli_json("export", BOB, str(target), *words) == {"messages": 4}
    name = f"from-{kind}"
    assert imported(relay, name, target) == {"imported": 4, "present": 0}
    assert imported(relay, name, target) == {"imported": 0, "present": 4}
    assert bodies(relay, name) == bodies(relay, "bob")
    assert len(set(bodies(relay, name))) == 4
    ids = {one["id"] for token in (name, "bob") for one in relay.messages("inbox", token=token)}
    assert len(ids) == 8


def test_other_programs_read_what_is_exported(relay: DevProcess, tmp_path: Path) -> None:
    for kind, opened in (("mbox", mailbox.mbox), ("maildir", mailbox.Maildir)):
        target = tmp_path / f"by-{kind}.{kind}"
        assert relay.cli("export", BOB, str(target), "--format", kind).returncode == 0
        box = opened(str(target), create=False)
        subjects = [one["subject"] for one in box]
        assert {"plain", "quoting", "long"} <= set(subjects)
        assert ("a draft" in subjects) == (kind == "mbox")  # a Maildir has it in its folder
        box.close()
    [draft] = mailbox.Maildir(str(tmp_path / "by-maildir.maildir" / ".Drafts"), create=False)
    assert draft["subject"] == "a draft"
    assert draft["bcc"] == "hidden@a.test"


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
    assert imported(relay, "theirs", *paths) == {"imported": 3, "present": 0}
    found = {each["subject"]: each for each in relay.messages("inbox", token="theirs")}
    assert {name: each["isRead"] for name, each in found.items()} == {
        "theirs": False,
        "second": False,
        "seen": True,
    }
    assert found["seen"]["flag"]["flagStatus"] == "flagged"
    assert found["theirs"]["id"] != "0123456789abcdef"


def set_state(relay: DevProcess, token: str) -> None:
    change = {"categories": ["Done"], "isRead": True}
    for one in relay.messages("inbox", token=token):
        assert relay.graph("PATCH", f"/me/messages/{one['id']}", change, token=token).status == 200


def states(relay: DevProcess, name: str) -> dict[str, tuple[bool, list[str]]]:
    found = relay.messages("inbox", token=name)
    return {one["subject"]: (one["isRead"], one["categories"]) for one in found}


@pytest.mark.parametrize("kind", ["eml", "mbox", "maildir"])
def test_states_and_flags_go_with_their_messages(
    relay: DevProcess, tmp_path: Path, kind: str
) -> None:
    source, name = tmp_path / "theirs.eml", f"states-{kind}"
    source.write_bytes(b"Subject: theirs\r\n\r\nx\r\n")
    assert imported(relay, name, source) == {"imported": 1, "present": 0}
    relay.until_final(relay.submit("app@example.test", [f"{name}@example.test"], MAIL[0]))
    set_state(relay, name)
    box = relay.mailbox_of(f"{name}@example.test")
    [theirs] = box.glob("cur/*.I*")
    [delivered] = box.glob("cur/*.R*")
    # A mail server has moved the first message, and copied the second one, with its state.
    theirs.rename(box / ".Archive/cur/1700000000.M1P1.imap:2,S")
    (box / ".Archive/cur/1700000001.M2P2.imap:2,").write_bytes(delivered.read_bytes())
    done, copied = (True, ["Done"]), (False, ["Done"])
    for folder, expected in (
        ("archive", {"theirs": done, "plain": copied}),
        ("inbox", {"plain": done}),
    ):
        target = tmp_path / (f"{folder}.mbox" if kind == "mbox" else folder)
        words = ("--format", kind, "--folder", folder)
        relay.cli_json("export", f"{name}@example.test", str(target), *words)
        where = target / ".Archive" if (kind, folder) == ("maildir", "archive") else target
        imported(relay, f"{name}-{folder}", where)
        assert states(relay, f"{name}-{folder}") == expected


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"", "found no octets, expected a message"),
        (b"\x89PNG\r\n", "found '\\\\x89PNG', expected the header of a message"),
        (b"From a@b Thu Jan  1 00:00:00 1970\nSubject: x\n\ny\n\nFrom a\nno header\n", ":6: found"),
    ],
)
def test_what_is_no_mail_is_named(
    relay: DevProcess, tmp_path: Path, octets: bytes, text: str
) -> None:
    good, bad = tmp_path / "good.eml", tmp_path / "bad"
    good.write_bytes(b"Subject: " + hashlib.sha256(octets).hexdigest().encode() + b"\n\nx\n")
    bad.write_bytes(octets)
    done = relay.cli("import", str(good), str(bad), "--mailbox", CAROL, "--create")
    assert (done.returncode, done.stdout) == (DATA, "")
    assert str(bad) in done.stderr
    assert text in done.stderr
    number = 1 + octets.startswith(b"From")
    assert f"imported {number} message" in done.stderr
    left = [*relay.mailbox_of(CAROL).glob("tmp/*")]
    assert left == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["import", "/dev/null", "--mailbox", "nobody@example.test"], DATA),
        (["import", "/dev/null", "--mailbox", BOB, "--folder", "none"], DATA),
        (["import", "/no/such/file", "--mailbox", BOB], NO_INPUT),
        (["import", "--mailbox", BOB], USAGE),
        (["export", "nobody@example.test", "x"], DATA),
        (["export", BOB, "relay.toml", "--format", "mbox"], USAGE),
    ],
)
def test_faults(relay: DevProcess, words: list[str], code: int) -> None:
    before = relay.config_file.read_bytes()
    done = relay.cli(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr
    assert relay.config_file.read_bytes() == before


def test_what_an_import_leaves_out_is_named(relay: DevProcess, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_text("Subject: a\n\n")
    (tmp_path / "b.eml").symlink_to(tmp_path / "a.eml")
    words = ("import", str(tmp_path), "--mailbox", "links@example.test", "--create")
    done = relay.cli(*words)
    assert (done.returncode, done.stdout) == (0, "imported 1 message\n")
    assert done.stderr == f"relay import: left out {tmp_path / 'b.eml'}: a symbolic link\n"
