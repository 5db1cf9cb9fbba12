"""`relay dev` by IMAP and POP3: where it listens, what logs in, and what its options refuse.

Dovecot refuses root: root runs these relays as another user.
"""

import contextlib
import imaplib
import os
import poplib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from typing import Any

import httpx
import pytest

import relay.development.relay as development
import relay.development.verbs.dev as verb
from relay.development.mail_access.dovecot import Dovecot, find_dovecot
from relay.development.option_fields import IN_CLEAR, MAIL
from relay.operation.cli.errors import CommandError
from relay.operation.cli.options import CommandContext
from relay.testing import async_relay, running
from tests.support.dev_process import PORTS, DevProcess, run_dev
from tests.support.process_tree import tree
from tests.support.relay_process import until

pytestmark = pytest.mark.skipif(not find_dovecot().pop3, reason=find_dovecot().why_not("pop3"))
FREE = [*PORTS, "--imap=127.0.0.1:0", "--pop3=127.0.0.1:0"]
QUIET = ("--no-demo", "--no-rules")  # rules ask a process of the Python of root
SPECIAL_USE = {
    r"\Drafts": "drafts",
    r"\Sent": "sentitems",
    r"\Junk": "junkemail",
    r"\Trash": "deleteditems",
    r"\Archive": "archive",
}
TOKEN = "a-token-of-a-good-length"


MBSYNC = """\
IMAPStore relay
Host {host}
Port {port}
User mbsync@customer.example
Pass x
SSLType None
AuthMechs *

MaildirStore copy
Path {copy}/
Inbox {copy}/INBOX
SubFolders Verbatim

Channel all
Far :relay:
Near :copy:
Patterns INBOX Archive
Create Near
SyncState *
"""


def started(relay: DevProcess) -> DevProcess:
    """Start a relay as a user whom Dovecot serves."""
    relay.user = 65534 if os.geteuid() == 0 else 0
    return relay.start()


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return started(dev_module(*QUIET, ports=FREE, start=False))


def place(relay: DevProcess, name: str) -> tuple[str, int]:
    host, _, port = relay.ready[name][0].rpartition(":")
    return "localhost" if host == "0.0.0.0" else host, int(port)


def by_imap(relay: DevProcess, user: str, password: str = "x", name: str = "imap") -> imaplib.IMAP4:
    if name == "imap":
        session = imaplib.IMAP4(*place(relay, name), timeout=60)
    else:
        trust = ssl.create_default_context(cafile=relay.ready["ca"])
        session = imaplib.IMAP4_SSL(*place(relay, name), ssl_context=trust, timeout=60)
    try:
        session.login(user, password)
    except imaplib.IMAP4.error:
        session.shutdown()
        raise
    return session


def test_each_port_opens_the_mailbox_of_a_captured_recipient(relay: DevProcess) -> None:
    relay.send_captured("ann@customer.example", b"Subject: code\r\n\r\n481516\r\n")
    for name in ("imap", "imaps"):
        with by_imap(relay, "ann@customer.example", name=name) as session:
            assert session.select("INBOX") == ("OK", [b"1"])
            assert session.fetch("1", "(BODY[TEXT])")[1][0][1] == b"481516\r\n"
    trust = ssl.create_default_context(cafile=relay.ready["ca"])
    for session in (
        poplib.POP3(*place(relay, "pop3"), timeout=60),
        poplib.POP3_SSL(*place(relay, "pop3s"), context=trust, timeout=60),
    ):
        session.user("ann@customer.example")
        session.pass_("x")
        assert session.retr(1)[1][-1] == b"481516"
        session.quit()
    for name in MAIL:
        assert f"{name}://{relay.ready[name][0]}" in relay.log
        assert f"{name}://{relay.ready[name][0]}" in relay.get("/help").text


def test_imap_and_graph_agree(relay: DevProcess) -> None:
    who = "cat@customer.example"
    for subject in ("one", "two", "three"):
        relay.send_captured(who, f"Subject: {subject}\r\n\r\nx\r\n".encode())

    def graph(path: str, method: str = "GET", body: object = None) -> Any:
        answer = relay.graph(method, f"/users/{who}/{path}", body)
        assert answer.status in (200, 201), answer.body
        return answer.json()

    def subjects(folder: str) -> list[str]:
        messages = graph(f"mailFolders/{folder}/messages?$select=subject")["value"]
        return sorted(message["subject"] for message in messages)

    def number(subject: str) -> str:
        return session.search(None, "SUBJECT", subject)[1][0].decode()

    with by_imap(relay, f'"{who}"') as session:
        special = {word: line.split()[-1] for line in session.list()[1] for word in line.split()}
        for use, folder in SPECIAL_USE.items():
            content = f"Subject: {folder}\r\n\r\nx\r\n".encode()
            name = special[use.encode() + b")"].decode()
            assert session.append(name, r"(\Draft \Seen)", None, content)[0] == "OK"
            assert subjects(folder) == [folder]
        session.select("INBOX")
        assert [number("one"), number("two"), number("three")] == ["1", "2", "3"]
        session.store(number("one"), "+FLAGS", r"(\Seen \Flagged \Answered)")
        session.copy(number("two"), "Archive")
        session._simple_command("MOVE", number("three"), "Trash")
        assert session.create("Projects")[0] == "OK"
        graph("mailFolders", "POST", {"displayName": "Invoices"})
        [one, two] = graph("mailFolders/inbox/messages?$orderby=subject")["value"]
        assert (one["isRead"], one["flag"]["flagStatus"]) == (True, "flagged")
        assert two["isRead"] is False
        assert subjects("archive") == ["archive", "two"]
        assert subjects("deleteditems") == ["deleteditems", "three"]
        folders = {folder["displayName"] for folder in graph("mailFolders?$top=50")["value"]}
        assert {"Projects", "Invoices"} <= folders
        assert any(line.endswith(b"Invoices") for line in session.list()[1])
        change = {"isRead": True, "flag": {"flagStatus": "notFlagged"}}
        graph(f"messages/{one['id']}", "PATCH", change)
        graph(f"messages/{two['id']}", "PATCH", change)
        session.noop()
        for subject, flags in (("one", {b"\\Seen", b"\\Answered"}), ("two", {b"\\Seen"})):
            fetched = session.fetch(number(subject), "(FLAGS)")[1][-1]
            found = {flag for flag in imaplib.ParseFlags(fetched) if flag[:1] == b"\\"}
            assert found - {b"\\Recent"} == flags  # Dovecot 2.4 has keywords of its own
        session.store(number("one"), "+FLAGS", r"(\Deleted)")
        session.expunge()
        assert subjects("inbox") == ["two"]
        assert relay.get("/").text.count(">removed by a mail program; the queue") == 1
        session.send(b"x IDLE\r\n")
        assert session.readline().startswith(b"+")
        relay.send_captured(who, b"Subject: four\r\n\r\nx\r\n")
        delivered_s = time.monotonic()
        while not session.readline().endswith(b"EXISTS\r\n"):
            pass
        assert time.monotonic() - delivered_s < 10  # half a second, if the machine is idle
        session.send(b"DONE\r\n")
        while not session.readline().startswith(b"x OK"):
            pass


def test_a_reset_ends_sessions_and_the_mailbox_is_empty(relay: DevProcess) -> None:
    relay.send_captured("bea@customer.example", b"Subject: code\r\n\r\n1\r\n")
    open_session = by_imap(relay, "bea@customer.example")
    assert open_session.select("INBOX") == ("OK", [b"1"])
    assert relay.request("DELETE", "/relay/v1/messages").status == 200
    assert open_session.readline() == b""
    open_session.shutdown()
    uid_validities = {open_session.response("UIDVALIDITY")[1][0]}
    for _ in range(2):  # both within a second
        session = by_imap(relay, "bea@customer.example")
        assert session.select("INBOX") == ("OK", [b"0"])
        uid_validities |= {session.response("UIDVALIDITY")[1][0]}
        assert relay.request("DELETE", "/relay/v1/messages").status == 200
        session.shutdown()
    assert len(uid_validities) == 3


def test_mbsync_copies_what_was_sent_and_what_graph_moved(relay: DevProcess, tmp_path) -> None:
    if shutil.which("mbsync") is None:
        pytest.skip("isync is not installed")
    relay.send_captured("mbsync@customer.example", b"Subject: code\r\n\r\n1\r\n")
    relay.send_captured("mbsync@customer.example", b"Subject: moved\r\n\r\n1\r\n")
    moved = relay.until_messages("mbsync@customer.example", 2)[0]["id"]
    path = f"/users/mbsync@customer.example/messages/{moved}/move"
    assert relay.graph("POST", path, {"destinationId": "archive"}).status == 201
    host, port = place(relay, "imap")
    (tmp_path / "mbsyncrc").write_text(MBSYNC.format(host=host, port=port, copy=tmp_path))
    subprocess.run(["mbsync", "-c", tmp_path / "mbsyncrc", "all"], check=True, timeout=60)
    assert [len([*tmp_path.glob(f"{name}/[nc]*/*")]) for name in ("INBOX", "Archive")] == [1, 1]


def test_default_ports_in_use_are_left_out(dev) -> None:
    with contextlib.ExitStack() as held:
        for port in MAIL.values():
            taken = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # another process has it, which is as good
                taken.bind(("127.0.0.1", port))
                taken.listen()
        running = started(dev(*QUIET, ports=[], start=False))
    assert [running.ready[name] for name in MAIL] == [[], [], [], []]
    for name, port in MAIL.items():
        line = (
            rf"127\.0\.0\.1:{port}: Address already in use by .+; no .+; --(imap|pop3) PORT takes"
        )
        assert len(re.findall(line, running.log)) == 1, name


def test_other_machines_reach_the_ports_with_tls_by_the_token(dev) -> None:
    words = (*QUIET, "--listen-all", "--imap=0", "--pop3=0")
    running = started(dev(*words, start=False, RELAY_DEV_TOKEN=TOKEN))
    for name in MAIL:
        host = "127.0.0.1:" if name in IN_CLEAR else "0.0.0.0:"
        assert running.ready[name][0].startswith(host)
    for name in ("imap", "imaps"):
        with pytest.raises(imaplib.IMAP4.error):
            by_imap(running, "ann@customer.example", "x", name)
        with by_imap(running, "ann@customer.example", TOKEN, name) as session:
            assert session.select("INBOX") == ("OK", [b"0"])
    before = tree(running.process.pid).keys()
    session = by_imap(running, "ann@customer.example", TOKEN, "imaps")
    [child] = tree(running.process.pid).keys() - before
    os.kill(child, signal.SIGSTOP)  # it reads no end of its input
    running.kill()
    until("the child's end, too", lambda: tree(1).get(child, ["Z"])[0] == "Z")
    session.shutdown()


def test_without_the_packages_it_says_which(monkeypatch, kit) -> None:
    for module in (async_relay, running, verb, development):
        monkeypatch.setattr(module, "find_dovecot", Dovecot)
    relay = kit()
    with pytest.raises(RuntimeError, match="dovecot-imapd"):
        relay.imap  # noqa: B018
    page = httpx.get(f"{relay.http_url}/help", trust_env=False).text
    for text in ("dovecot-imapd", "dovecot-pop3d", "systemctl disable --now dovecot.socket"):
        assert text in page
    with pytest.raises(CommandError, match="dovecot-pop3d") as refused:
        verb.dev.main(["--pop3=0"], standalone_mode=False, obj=CommandContext())
    assert refused.value.code == 69


def test_it_ends_as_root_and_for_a_port_without_tls_beyond_loopback(short_path) -> None:
    for code, text, *words in (
        (64, "expected a loopback", "--imap=0.0.0.0:1143", "--token", TOKEN),
        (64, "expected a loopback", "--listen-all", "--pop3=192.0.2.1:0", "--token", TOKEN),
        *([(69, "as root", "--imap=0")] if os.geteuid() == 0 else []),
    ):
        done = run_dev(short_path, *words)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
