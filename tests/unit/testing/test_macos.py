"""The test kit without what only Linux has; tests/support/macos says what that is."""

import os
import sys

from tests.support.commands import run_command
from tests.support.relay_starts import ROOT

PROGRAM = """
import sys
from relay.testing import Relay

assert sys.platform == "darwin"
with Relay() as relay:
    gmail = relay.internet.domain("gmail.com")
    gmail.rcpt("joe").reply("451 4.7.1 later", times=1)
    gmail.rcpt("ann").reply("550 5.1.1 no such user")
    to = ["bob@example.test", "joe@gmail.com", "ann@gmail.com", "sue@elsewhere.test"]
    sent = relay.send("alice@example.test", to, "Hello", "x", attachments=[("a.txt", b"a" * 100_000)])
    message = relay.mailbox("bob@example.test").wait_for(subject="Hello")
    assert sent.bounce.recipient == "ann@gmail.com"
    assert sent.recipient("joe@gmail.com")["state"] == "deferred"
    relay.clock.advance(minutes=5)
    assert gmail.wait_for(subject="Hello").recipients == ["joe@gmail.com"]
    relay.mailbox("bob@example.test").mark_read(message)
    relay.reset()
    assert relay.messages() == []
    relay.send("alice@example.test", to[0], "Hello again", "x")
    relay.mailbox("bob@example.test").wait_for(subject="Hello again")
    relay.assert_no_more_mail()
    print(relay.running.folder.path)
"""


def test_it_starts_sends_and_waits(tmp_path):
    path = os.pathsep.join((str(ROOT / "tests/support/macos"), str(ROOT)))
    long_name = tmp_path / ("x" * 60)  # in which no socket has a name
    long_name.mkdir()
    given = {"PYTHONPATH": path, "TMPDIR": str(long_name)}
    ended = run_command([sys.executable, "-W", "error", "-c", PROGRAM], env=os.environ | given)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    assert ended.stdout.startswith("/tmp/relay-tests-")
