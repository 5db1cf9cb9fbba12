"""`relay storage backup | prune | verify` of the spool, and what saves a damaged one, with real relays and a real remote host."""

import json
import re
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path

import apsw
import pytest

from tests.support import relay_starts
from tests.support.commands import run_command
from tests.support.relay_process import RelayProcess, until

OK, DATA = 0, 65
TOP = Path(__file__).parents[2]
BODY = "x" * 300_000  # a file of its own in the spool
LATER = "450 4.2.0 greylisted, try again later"


def storage_json(relay: RelayProcess, *words: str, code: int = OK):
    done = relay.cli("storage", *words, "--json")
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def deferred(
    relay: RelayProcess, subject: str, *, body: str = "hello", to: str = "x@a.test"
) -> str:
    content = f"Subject: {subject}\r\n\r\n{body[:900]}\r\n" + f"{'y' * 900}\r\n" * (
        len(body) // 902
    )
    queue_id = relay.submit("alice@example.test", [to], content.encode())
    relay.until_state(queue_id, "deferred")
    return queue_id


def subjects(remote) -> list[str]:
    """Of what the remote host has taken from us."""
    contents = [one.content for one in remote.received("x@a.test")]
    return sorted(str(message_from_bytes(one)["subject"]) for one in contents)


def contents(relay: RelayProcess) -> Path:
    return relay.folder / "state" / "spool.sqlite-content"


def test_a_backup_of_a_running_relay_is_restored(remotes, tmp_path, serve):
    remote = remotes.start("a.test", rcpt={"x@a.test": LATER})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    waiting = [deferred(relay, f"waiting {number}") for number in range(3)]
    large = deferred(relay, "large", body=BODY)
    finished = relay.send_mail(to=["bob@example.test"], subject="local")
    relay.until_final(finished)
    manifest = storage_json(relay, "backup", str(tmp_path / "copy"))
    assert manifest["entries"] == {"deferred": 4}
    assert manifest == json.loads((tmp_path / "copy/manifest.json").read_text())
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "copy", check=False
    )
    assert checked.returncode == OK
    again = relay.cli("storage", "backup", str(tmp_path / "copy"))
    assert (again.returncode, "is not empty" in again.stderr) == (DATA, True)
    deferred(relay, "behind the copy")
    assert relay.stop() == OK

    shutil.move(relay.folder / "state", relay.folder / "state-of-before")
    shutil.copytree(tmp_path / "copy", relay.folder / "state")
    remote.rcpt.clear()
    relay.start()
    assert {one["id"] for one in relay.queue()} == {*waiting, large}
    assert relay.states(finished) == {"bob@example.test": "delivered"}
    assert relay.cli("queue", "retry", "--all").returncode == OK
    for queue_id in (*waiting, large):
        relay.until_state(queue_id, "relayed")
    assert subjects(remote) == ["large", "waiting 0", "waiting 1", "waiting 2"]
    assert storage_json(relay, "verify")["spool"]["unaccounted"] == 0
    assert relay.metric("relay_queue_unaccounted") == 0


@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_an_entry_whose_content_cannot_be_read_is_held_until_it_is_restored(remotes, change, serve):
    remote = remotes.start("a.test", rcpt={"x@a.test": LATER})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    queue_id = deferred(relay, "large", body=BODY)
    assert relay.stop() == OK
    (file,) = contents(relay).iterdir()
    original = file.read_bytes()
    if change == "damaged":
        file.write_bytes(original.replace(b"large", b"lar9e", 1))
        assert storage_json(relay, "verify")["findings"] == []
    else:
        file.unlink()
    (found,) = storage_json(relay, "verify", "--full", code=DATA)["findings"]
    assert found["kind"] == "lost-content"
    remote.rcpt.clear()
    relay.start()
    for state in ("deferred", "held"):
        assert relay.cli("queue", "retry", queue_id).returncode == OK
        until(state, lambda wanted=state: relay.queue()[0]["state"] == wanted)
        until("read again", lambda: relay.queue()[0]["recipients"][0]["reply"] != LATER)
    [entry] = relay.queue()
    told = {"missing": "cannot be read", "damaged": "has changed: CRC-32"}[change]
    assert told in entry["recipients"][0]["reply"]
    assert remote.received("x@a.test") == []
    file.write_bytes(original)
    assert storage_json(relay, "verify")["findings"] == []
    assert relay.cli("queue", "release", queue_id).returncode == OK
    relay.until_state(queue_id, "relayed")
    assert subjects(remote) == ["large"]


def damage(relay: RelayProcess, table: str) -> Path:
    """Write over the first page of a table; return the file of the spool."""
    spool = relay.folder / "state" / "spool.sqlite"
    connection = apsw.Connection(str(spool))
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).get
    connection.close()
    with spool.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    return spool


def printed_commands() -> str:
    """The block of docs/operation-backup.md that saves what can be read of a damaged spool."""
    page = (TOP / "docs/operation-backup.md").read_text()
    block = page.partition("### Put a backup back")[2].partition("```\n")[2].partition("```")[0]
    kept = [line for line in block.splitlines() if not re.match("systemctl|chown|cd ", line)]
    assert len(block.splitlines()) - len(kept) == 4
    return "\n".join(kept)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is not installed")
def test_a_damaged_spool_is_refused_and_saved_as_the_page_says(remotes, serve):
    remote = remotes.start("a.test", rcpt={"x@a.test": LATER})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    waiting = [deferred(relay, f"waiting {number}") for number in range(2)]
    large = deferred(relay, "large", body=BODY)
    assert relay.stop() == OK
    spool = damage(relay, "event")
    verified = relay.cli("storage", "verify")
    assert (verified.returncode, "damaged-spool" in verified.stdout) == (DATA, True)

    done = run_command(
        ["bash", "-c", printed_commands()],
        cwd=spool.parent,
        env=relay_starts.environment(relay.folder)
        | {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "RELAY_CONFIG": str(relay.config_file),
        },
    )
    assert done.stdout.splitlines()[-1] == "0 faults", done
    remote.rcpt.clear()
    relay.start()
    assert {one["id"] for one in relay.queue()} == {*waiting, large}
    assert relay.cli("queue", "retry", "--all").returncode == OK
    for one in (*waiting, large):
        relay.until_state(one, "relayed")
    assert relay.metric("relay_queue_unaccounted") == 0


def test_an_unreadable_page_rejects_new_mail_and_is_reported(remotes, serve):
    remotes.start("a.test", rcpt={"x@a.test": LATER})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    deferred(relay, "waiting")
    assert relay.stop() == OK
    damage(relay, "submission")
    relay.start()
    note = relay.send_mail(to=["bob@example.test"], subject="waits")
    until("found", lambda: relay.metric("relay_spool_damaged") == 1)
    ready = relay.request("GET", "/readyz")
    assert (ready.status, b"damaged" in ready.body) == (503, True)
    with relay.smtp() as session:
        session.ehlo()
        session.mail("alice@example.test")
        session.rcpt("bob@example.test")
        assert session.data(b"Subject: s\r\n\r\nx\r\n")[0] == 451
    assert f"{note}.1" in {one["submission_id"] for one in relay.cli_json("log")}
