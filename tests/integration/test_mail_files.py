"""The programs and the recipe of the pages: a mailbox as mbox, files by SMTP, a Maildir that moves."""

import mailbox
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run_command
from tests.support.dev_process import DevProcess
from tests.support.graph_client import message
from tests.support.relay_config import OPERATOR

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "docs/examples"
BOB = "bob@example.test"
MAIL = [
    b"Subject: plain\r\n\r\nHello.\r\n",
    b"Subject: quoting\r\n\r\nFrom here\r\n\r\nFrom \r\n\r\n\r\n",
    b"Subject: =?utf-8?q?=C3=BC?=\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xbc.\r\n",
    b"Subject: long\r\n\r\n" + (b"x" * 990 + b"\r\nFrom ") * 4000 + b"\r\n",
]


@pytest.fixture(scope="module")
def relay() -> Iterator[DevProcess]:
    with DevProcess("--no-demo") as running:
        yield running


def run_example(name: str, *words: str, status: int = 0) -> str:
    done = run_command([sys.executable, EXAMPLES / name, *words])
    assert done.returncode == status
    return done.stderr


def sent_by_smtp(relay: DevProcess, recipient: str, *paths: Path, status: int = 0) -> str:
    """Wait until all is delivered; return what was said."""
    at = "{}:{}".format(*relay.smtp_address())
    said = run_example("send_mailbox.py", at, recipient, *map(str, paths), status=status)
    answer = relay.graph("POST", "/relay/v1/quiet", {"timeout_s": 30}, token=OPERATOR)
    assert answer.json()["quiet"] is True
    return said


def body_of(content: bytes) -> bytes:
    return content.partition(b"\r\n\r\n")[2]


def test_a_mailbox_goes_out_as_mbox_and_comes_back_by_smtp(
    relay: DevProcess, tmp_path: Path
) -> None:
    for content in MAIL:
        relay.until_final(relay.submit("app@example.test", [BOB], content))
    draft = message(to=["x@a.test"], bcc=["hidden@a.test"], subject="a draft")
    assert relay.graph("POST", "/me/messages", draft, token="bob").status == 201
    target = tmp_path / "all.mbox"
    run_example("to_mbox.py", str(relay.mailbox_of(BOB)), str(target))
    found = mailbox.mbox(target, create=False)
    subjects = ["=?utf-8?q?=C3=BC?=", "a draft", "long", "plain", "quoting"]
    assert sorted(str(one["subject"]) for one in found) == subjects
    found.close()
    assert sent_by_smtp(relay, "back@example.test", target) == ""
    came = [body_of(one) for one in contents(relay, "back@example.test")]
    assert {body_of(content) for content in MAIL} <= {*came}
    assert len(came) == len(subjects)


def contents(relay: DevProcess, address: str) -> list[bytes]:
    return [file.read_bytes() for file in (relay.mailbox_of(address) / "new").iterdir()]


def test_files_of_other_programs_are_sent(relay: DevProcess, tmp_path: Path) -> None:
    for file, content in {
        "Maildir/cur/1.a.host:2,S": b"From: A <a@x.test>\nSubject: seen\n\nx\n",
        "Maildir/.Sent/new/2.a.host": b"Subject: sent\n\nno line end",
        "Maildir/dovecot.index": b"\0",
        "Mail/inbox/17": b"From: b\xfc@x.test\nSubject: mh\n\n8 bit \xfc\n",
        "Mail/.mh_sequences": b"unseen: 17\n",
        "one.eml": b"Subject: one\n\n.\n",
        **{f"bare/cur/{n}": b"Subject: bare\n\nCR\rLF\n" for n in range(25)},
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    paths = [tmp_path / name for name in ("bare", "Maildir", "Mail", "one.eml")]
    told = sent_by_smtp(relay, "theirs@example.test", *paths, status=1)  # the others were sent
    assert re.fullmatch(rf"({tmp_path}/bare/cur/\d+: .*550.*\n){{25}}", told)
    found = relay.messages("inbox", token="theirs")
    assert sorted(one["subject"] for one in found) == ["mh", "one", "seen", "sent"]


def test_a_maildir_moves_as_the_page_says(relay: DevProcess, tmp_path: Path) -> None:
    for file, content in {
        "cur/1700000000.1.host,S=59,W=62:2,FS": "Subject: seen\n\nx\n",
        "new/1700000001.2.host": "Received: x\nX-RELAY-Id: 0123456789abcdef\n more\nSubject: new\n\nX-Relay-Id: text\n",
        "new/1700000002.3.host,S=99,W=104": "X-Relay-Draft: 1 0000000024\r\nX-Relay-Data: {}\r\nSubject: block\r\n\r\nx\r\n",
        ".Sent/cur/1700000003.4.host:2,Sa": "Subject: sent\n\nx\n",
        ".Work/new/1700000004.5.host": "Subject: work\n\nx\n",
        ".a,S=5 b/cur/1700000006.7.host,S=9:2,": "X-Relay-Id: 1\nSubject: comma\n\nx\n",
        ".Work.2025/cur/1700000005.6.host:2,S": "Subject: work of 2025\n\nx\n",
    }.items():
        folder = (tmp_path / file).parents[1]
        for name in ("cur", "new", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content.encode())
        os.utime(tmp_path / file, (1_600_000_000, 1_600_000_000))
    (tmp_path / ".Sent/dovecot-keywords").write_text("0 tax\n")
    (tmp_path / "dovecot-uidlist").write_text("3 V1 N6 G1\n")
    page = (TOP / "docs/operation-routes.md").read_text().partition("### A mailbox that moves\n")[2]
    (recipe,) = re.findall(r"(?s)```\n(.*?)```", page.partition("\n#")[0])
    target = relay.mailbox_of("ann@example.test")
    user = (
        ("-o relay -g relay", f"-o {os.getuid()} -g {os.getgid()}"),
        ("relay:relay", f"{os.getuid()}:{os.getgid()}"),
    )
    place = (("~ann/Maildir", str(tmp_path)), ("/var/lib/relay/mail/example.org/ann", str(target)))
    for written, here in (*user, *place):
        assert recipe.count(written) == 1
        recipe = recipe.replace(written, here)
    done = subprocess.run(
        ["bash", "-e"], check=False, input=recipe, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    found = {one["subject"]: one for one in relay.messages("inbox", token="ann")}
    assert {name: one["isRead"] for name, one in found.items()} == {
        "seen": True,
        "new": False,
        "block": False,
    }
    assert found["seen"]["flag"]["flagStatus"] == "flagged"
    assert {one["receivedDateTime"] for one in found.values()} == {"2020-09-13T12:26:40Z"}
    assert found["new"]["id"] != "0123456789abcdef"
    assert {one.read_bytes() for one in (target / "new").iterdir()} == {
        b"Received: x\nSubject: new\n\nX-Relay-Id: text\n",
        b"Subject: block\r\n\r\nx\r\n",
    }
    (sent,) = relay.messages("sentitems", token="ann")
    assert sent["subject"] == "sent"
    assert (target / ".Sent/dovecot-keywords").read_text() == "0 tax\n"
    (comma,) = (target / ".a,S=5 b/cur").iterdir()
    assert (comma.name, comma.read_bytes()) == ("1700000006.7.host:2,", b"Subject: comma\n\nx\n")
    folders = relay.graph("GET", "/me/mailFolders", token="ann").json()["value"]
    (work,) = [one["id"] for one in folders if one["displayName"] == "Work"]
    below = relay.graph("GET", f"/me/mailFolders/{work}/childFolders", token="ann").json()["value"]
    assert [(one["displayName"], one["totalItemCount"]) for one in below] == [("2025", 1)]
    relay.until_final(relay.submit("app@example.test", ["ann@example.test"], MAIL[0]))
    moved = f"/me/messages/{found['new']['id']}/move"
    assert relay.graph("POST", moved, {"destinationId": below[0]["id"]}, token="ann").status == 201
