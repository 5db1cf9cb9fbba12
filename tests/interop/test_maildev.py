"""maildev 3 on loopback: what docs/comparison.md says of it, and marks as tested.

Each `row` names a row of the table there and what its cell says; tests/unit/test_comparison.py compares
them. `make clients` installs maildev.
"""

import base64
import json
import os
import shutil
import smtplib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.relay_process import ROOT, until
from tests.support.remotes import Remotes

PROGRAM = ROOT / ".clients/maildev/node_modules/maildev/dist/bin/maildev.js"
HOSTILE = """\
<html><head><link rel="stylesheet" href="http://tracker.test/style.css"></head><body>
<p onclick="alert(1)">Hello</p><script>alert(2)</script>
<img src="http://tracker.test/open.gif"><a href="javascript:alert(3)">x</a></body></html>
"""


def row(name: str, says: str) -> Callable[[Any], Any]:
    """Name the row of docs/comparison.md that a test is about, and what its cell says."""

    def same(test: Any) -> Any:
        assert name
        assert says in ("yes", "no", "partly")
        return test

    return same


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Maildev:
    """One process of it."""

    smtp_port: int
    web_port: int
    base: str = ""

    def request(
        self, method: str, path: str, body: str | None = None, *, accept: str = "*/*"
    ) -> Response:
        """Send a request; `path` begins with a slash."""
        kind = "application/json" if path.startswith("/api") else "text/plain"
        headers = {"Accept": accept} | ({} if body is None else {"Content-Type": kind})
        data = None if body is None else body.encode()
        url = f"http://127.0.0.1:{self.web_port}{self.base}{path}"
        request = urllib.request.Request(url, data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Response(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return Response(error.code, error.read())

    def smtp(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.smtp_port, timeout=10)

    def send(
        self, subject: str = "hello", *, to: str = "ann@customer.example", html: str = ""
    ) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "app@example.test", to, subject
        message.set_content("Your code is 481516.")
        if html:
            message.add_alternative(html, subtype="html")
        with self.smtp() as session:
            assert session.send_message(message) == {}

    def messages(self) -> list[dict[str, Any]]:
        return list(self.request("GET", "/api/email").json())

    def received(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many messages are listed."""
        until(f"maildev lists {count}", lambda: len(self.messages()) >= count)
        return self.messages()


@contextmanager
def running(folder: Path, *options: str, base: str = "") -> Iterator[Maildev]:
    """Start maildev, wait until it answers, and stop it at the end."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not PROGRAM.exists():
        pytest.skip("maildev is not installed: make clients")
    tool = Maildev(free_port(), free_port(), base)
    options = (*options, "--base-pathname", base) if base else options
    listen = ["--ip", "127.0.0.1", "--web-ip", "127.0.0.1"]
    ports = ["--smtp", str(tool.smtp_port), "--web", str(tool.web_port)]
    process = subprocess.Popen(
        [node, str(PROGRAM), *listen, *ports, *options], cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until("maildev answers", lambda: _is_up(tool, process), timeout_s=20)
        yield tool
    finally:
        process.kill()  # it has nothing to keep, and waits for open connections otherwise
        process.wait(10)


def _is_up(tool: Maildev, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"maildev ended with {process.returncode}"
    try:
        tool.smtp().quit()
        return tool.request("GET", "/api/healthz").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maildev]:
    """One maildev for all tests that need no options."""
    with running(tmp_path_factory.mktemp("maildev")) as tool:
        yield tool


@pytest.fixture
def maildev(one: Maildev) -> Maildev:
    """The same, empty."""
    assert one.request("DELETE", "/api/email/all").status == 200
    return one


@row("accepts mail for any address", "yes")
@row("lists and reads messages by an HTTP API", "yes")
def test_mail_is_listed(maildev: Maildev) -> None:
    maildev.send("Welcome", to="ann@customer.example")
    maildev.send("Invoice", to="bob@example.test")
    maildev.received(2)
    assert sorted(subjects(maildev)) == ["Invoice", "Welcome"]
    found = maildev.request("GET", "/api/email?subject=Welcome").json()
    assert [mail["to"][0]["address"] for mail in found] == ["ann@customer.example"]
    source = maildev.request("GET", f"/api/email/{found[0]['id']}/source").body
    assert b"\r\nSubject: Welcome\r\n" in source


@row("searches messages", "yes")
def test_search(maildev: Maildev) -> None:
    maildev.send("Welcome")
    maildev.send("Invoice")
    maildev.received(2)
    found = maildev.request("GET", "/api/email/summary?search=voice").json()
    assert [mail["subject"] for mail in found["items"]] == ["Invoice"]


@row("deletes one message, or all", "yes")
def test_delete(maildev: Maildev) -> None:
    maildev.send("first")
    maildev.send("second")
    first = next(mail for mail in maildev.received(2) if mail["subject"] == "first")
    assert maildev.request("DELETE", f"/api/email/{first['id']}").status == 200
    assert subjects(maildev) == ["second"]
    assert maildev.request("DELETE", "/api/email/all").status == 200
    assert maildev.messages() == []


@row("a live page", "yes")
def test_the_page_is_told_of_new_mail(maildev: Maildev) -> None:
    """Socket.IO over HTTP: the page's script listens to the same event."""
    assert b"<script" in maildev.request("GET", "/", accept="text/html").body
    path = "/socket.io/?EIO=4&transport=polling"
    session = json.loads(maildev.request("GET", path).body[1:])["sid"]
    assert maildev.request("POST", f"{path}&sid={session}", "40").status == 200
    assert maildev.request("GET", f"{path}&sid={session}").body.startswith(b"40")
    maildev.send("Welcome")
    told = maildev.request("GET", f"{path}&sid={session}").body
    assert told.startswith(b'42["newMail",')
    assert b"Welcome" in told


@row("a preview in which scripts cannot run", "yes")
def test_scripts_are_removed(maildev: Maildev) -> None:
    html = preview(maildev)
    assert "Hello" in html
    assert not [one for one in ("<script", "onclick", "javascript:") if one in html]


@row("a preview that asks no other host for anything", "no")
def test_remote_images_and_styles_stay(maildev: Maildev) -> None:
    html = preview(maildev)
    assert 'src="http://tracker.test/open.gif"' in html
    assert 'href="http://tracker.test/style.css"' in html


def preview(maildev: Maildev) -> str:
    maildev.send(html=HOSTILE)
    mail = maildev.received()[0]
    answer = maildev.request("GET", f"/api/email/{mail['id']}/html")
    assert answer.status == 200
    return answer.body.decode()


@row("refuses a recipient with the code that a test wants", "no")
@row("bounces: the sender gets a report (RFC 3464)", "no")
def test_every_recipient_is_accepted(maildev: Maildev) -> None:
    """No recipient is special, and there is no other way to have one refused; nothing bounces."""
    with maildev.smtp() as session:
        session.ehlo()
        session.mail("app@example.test")
        for recipient in ("gone+550@example.org", "422@error.example.org", "bounce@example.org"):
            assert session.rcpt(recipient)[0] == 250
        session.rset()
    maildev.send("to nobody", to="gone+550@example.org")
    maildev.send("a later one")
    maildev.received(2)
    assert sorted(subjects(maildev)) == ["a later one", "to nobody"]


@row("waits for a message on the server", "no")
def test_a_request_for_mail_that_is_not_there_is_answered_at_once(maildev: Maildev) -> None:
    assert maildev.request("GET", "/api/email?subject=later").json() == []
    answer = maildev.request("GET", "/api/email/summary?search=later&wait=30").json()
    assert answer["items"] == []


@row("Graph's `sendMail`, with mailboxes behind it", "no")
def test_no_graph(maildev: Maildev) -> None:
    assert maildev.request("POST", "/v1.0/me/sendMail", '{"message": {}}').status == 404


@row("accepts any login", "no")
@row("STARTTLS with a certificate of its own", "no")
def test_logins_and_tls(maildev: Maildev) -> None:
    """It knows one user, if it is given one, and TLS from the first octet, if it is given a certificate."""
    with maildev.smtp() as session:
        session.ehlo()
        assert not session.has_extn("starttls")
        login = base64.b64encode(b"\0anyone\0anything").decode()
        assert session.docmd("AUTH", f"PLAIN {login}")[0] == 500


@row("chooses free ports", "partly")
def test_port_0_is_refused_on_the_command_line(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not PROGRAM.exists():
        pytest.skip("maildev is not installed: make clients")
    done = subprocess.run(
        [node, str(PROGRAM), "--ip", "127.0.0.1", "--web-ip", "127.0.0.1", "--smtp", "0"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "must be between 1 and 65535" in done.stdout + done.stderr


@row("releases a message to a real server", "yes")
@row("a queue with retries", "no")
def test_a_release_is_one_attempt(tmp_path: Path) -> None:
    """A host that defers gets the message only if somebody asks for it again."""
    with Remotes() as remotes:
        host = remotes.start("customer.example", replies={"RCPT": ["451 4.3.0 later", "250 ok"]})
        outgoing = ["--outgoing-host", host.host, "--outgoing-port", str(host.port)]
        with running(tmp_path, *outgoing) as maildev:
            maildev.send("Welcome")
            path = f"/api/email/{maildev.received()[0]['id']}/relay"
            answer = maildev.request("POST", path)
            assert (answer.status, host.received("ann@customer.example")) == (500, [])
            assert maildev.request("POST", path).status == 200
            assert len(host.received("ann@customer.example")) == 1


@row("keeps mail as files", "yes")
@row("removes old mail by itself", "partly")
@row("works below a path of a proxy", "yes")
def test_files_limits_and_the_base_path(tmp_path: Path) -> None:
    files = tmp_path / "mail"
    options = ("--mail-directory", str(files), "--max-emails", "1")
    with running(tmp_path, *options, base="/dev") as maildev:
        maildev.send("first")
        maildev.received()
        maildev.send("second")
        until("only the newest is there", lambda: subjects(maildev) == ["second"])
        (stored,) = until("one file", lambda: list(files.rglob("*.eml")))
        assert b"Subject: second" in stored.read_bytes()


def subjects(maildev: Maildev) -> list[str]:
    return [mail["subject"] for mail in maildev.messages()]
