"""`relay backup` and `relay restore` of services with their spool in PostgreSQL."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

from tests.host.test_backup import (  # noqa: F401 - fixtures and tests
    restored,
    serve_logged,
    stopped,
    test_a_full_disk_leaves_nothing_half_done,
    test_a_relay_does_not_start_in_half_a_restoration,
    test_root_restores_for_the_user_of_the_service,
    test_what_waits_is_cancelled,
    test_what_waits_is_held_until_it_is_released,
    test_what_was_answered_before_a_backup_under_load_is_there_once,
    wipe,
)
from tests.postgres.conftest import PortsUrl, StartNode
from tests.support.postgres import PASSWORD, PostgresServer, database_of
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

OK, USAGE, DATA, UNAVAILABLE = 0, 64, 65, 69
LATER = "450 4.2.0 greylisted, try again later"
PATIENT = {"delivery": {"retry": ["1h"], "expire_after": "2h"}}
# It stays after the copy was made, until it is told to end.
_STAYING = """\
#!/bin/sh
echo "$@" >> {folder}/words
env > {folder}/environment
{pg_dump} "$@" || exit
touch {folder}/copied
while ! [ -e {folder}/end ]; do sleep 0.05; done
"""
_OLD = """\
#!/bin/sh
echo "pg_dump: error: aborting because of server version mismatch" >&2
echo "pg_dump: detail: server version: 15.1; pg_dump version: 9.6" >&2
exit 1
"""


def program(folder: Path, name: str, text: str) -> dict[str, str]:
    """Write a program; return an environment in which it comes first."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text.format(folder=folder, pg_dump=shutil.which("pg_dump")))
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@contextmanager
def backup_that_stays(relay: RelayProcess, copy: Path, programs: Path) -> Iterator[None]:
    """Run `relay backup`; in the block the database has been copied, and no mailbox."""
    done: list[CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(relay.cli("backup", str(copy))))
    thread.start()
    try:
        until("copied", lambda: (programs / "copied").exists() or not thread.is_alive())
        assert done == []
        yield
    finally:
        (programs / "end").touch()
        thread.join()
    assert done[0].returncode == OK, done[0].stderr


def in_seconds(seconds: float) -> list[dict[str, str]]:
    at = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    return [{"id": "SystemTime 0x3FEF", "value": at}]


def test_what_is_sent_after_the_database_was_copied_is_held_and_not_lost(
    remotes: Remotes, url_by_ports: PortsUrl, server: PostgresServer, tmp_path: Path, serve
) -> None:
    """Its original was filed, or removed, and its local copy delivered, before the mailboxes were
    copied: its database knows nothing of it.
    """
    remote = remotes.start("a.test", rcpt={"later@a.test": LATER})
    programs = tmp_path / "bin"
    wrong = {"PGHOST": "/nowhere", "PGPASSWORD": "wrong", "PGSSLMODE": "verify-full", "PGPORT": "1"}
    environment = program(programs, "pg_dump", _STAYING) | wrong
    relay = serve(remotes, config=PATIENT, environment=environment)
    relay.stop()
    url = url_by_ports(database_of(relay.config["spool"]["url"]), server.port)
    relay.config["spool"]["url"] = url
    relay.write_config(relay.config)
    relay.start()
    relay.until_state(relay.submit("alice@example.test", ["later@a.test"]), "deferred")
    for subject, save in (("filed", True), ("removed", False)):
        to = ["bob@example.test", "x@a.test"]
        at = in_seconds(4)
        relay.send_mail(to=to, subject=subject, save=save, singleValueExtendedProperties=at)
    both = ["filed", "removed"]
    relay.process.send_signal(signal.SIGSTOP)  # however long the copy takes, they come later
    with backup_that_stays(relay, tmp_path / "copy", programs):
        relay.process.send_signal(signal.SIGCONT)
        until("they are delivered", lambda: relay.subjects("bob") == both)
        until("they are relayed", lambda: len(remote.received("x@a.test")) == 2)
        until("all is recorded", lambda: not relay.scheduled_submissions())
        until("none is ready", lambda: not relay.pending_submissions())
        assert relay.subjects(folder="Drafts") == []
        relay.submit("alice@example.test", ["bob@example.test"], b"Subject: new\r\n\r\n")
    relay.kill()
    assert PASSWORD not in (programs / "words").read_text()
    assert f"PGPASSWORD={PASSWORD}" in (programs / "environment").read_text()
    wipe(relay)
    done = relay.cli_json("restore", str(tmp_path / "copy"))
    assert done["held"] == {"entries": 1, "submissions": 2}
    assert relay.subjects("bob") == ["new"]
    relay.start()
    assert sorted(one["next_hop"] for one in restored(relay)) == ["mx:a.test", "pickup", "pickup"]
    assert relay.cli("queue", "release", "--restored").returncode == OK
    until("they are sent", lambda: relay.subjects("bob") == sorted([*both, "new"]))
    until("to others too", lambda: len(remote.received("x@a.test")) == 4)
    until("none is ready", lambda: not relay.pending_submissions())
    assert (relay.subjects(folder="Drafts"), relay.subjects(folder="Sent")) == ([], ["filed"])
    assert relay.cli("storage", "verify").returncode == OK
    assert relay.faults() == []


def test_each_node_saves_its_mail_root_and_one_the_database(
    remotes: Remotes, node: StartNode, tmp_path: Path
) -> None:
    remotes.start("a.test", rcpt={"later@a.test": LATER})
    nodes = {"one": node("one"), "two": node("two")}
    for name, relay in nodes.items():
        relay.until_final(relay.send_mail(to=["bob@example.test"], subject=name))
        at = in_seconds(3600)
        relay.send_mail(to=["x@a.test"], subject="x", singleValueExtendedProperties=at)
    waiting = nodes["two"].submit("alice@example.test", ["later@a.test"])
    nodes["two"].until_state(waiting, "deferred")
    nodes["two"].stop()
    for name, words in (("two", ("--no-database",)), ("one", ())):
        done = nodes[name].cli_json("backup", str(tmp_path / name), *words)
        assert (
            bool(done["spool"]) == bool(list((tmp_path / name / "spool").iterdir())) == (not words)
        )
    for relay in nodes.values():
        relay.kill()
    wipe(nodes["one"])
    shutil.rmtree(nodes["two"].folder / "state")
    shutil.rmtree(nodes["two"].folder / "mail")
    for name, entries in (("one", 1), ("two", 0)):  # the second finds the database there
        done = nodes[name].cli_json("restore", str(tmp_path / name))
        assert done["held"] == {"entries": entries, "submissions": 1}
    for name, relay in nodes.items():
        relay.start()
        assert relay.subjects("bob") == [name]
        assert [found["next_hop"] for found in restored(relay)] == ["mx:a.test", "pickup"]


def test_a_restoration_needs_an_empty_schema_and_no_node(
    stopped: tuple[RelayProcess, Path],  # noqa: F811 - the fixture
    server: PostgresServer,
) -> None:
    relay, copy = stopped
    wipe(relay)
    assert relay.cli("restore", str(copy)).returncode == OK
    shutil.rmtree(relay.folder / "state")
    shutil.rmtree(relay.folder / "mail")
    done = relay.cli("restore", str(copy))
    assert (done.returncode, "the schema is not empty: found body" in done.stderr) == (USAGE, True)
    assert not (relay.folder / "state").exists()
    wipe(relay)
    with RelayProcess() as other:  # it lives on a database whose tables are gone
        relay.write_config(relay.config | {"spool": other.config["spool"]})
        hidden = "ALTER SCHEMA public RENAME TO gone; CREATE SCHEMA public AUTHORIZATION relay"
        server.sql(hidden, database=database_of(other.config["spool"]["url"]))
        done = relay.cli("restore", str(copy), "--config", str(relay.config_file))
        relay.write_config(relay.config)
    assert (done.returncode, "a node of the spool lives" in done.stderr) == (UNAVAILABLE, True), (
        done
    )
    assert not (relay.folder / "state").exists()


def test_pg_dump_is_there_and_as_new_as_the_server(tmp_path: Path, serve) -> None:
    environment = program(tmp_path / "bin", "pg_dump", _OLD)
    relay = serve(environment=environment)
    done = relay.cli("backup", str(tmp_path / "copy"))
    text = "server version mismatch pg_dump: detail: server version: 15.1; pg_dump version: 9.6"
    assert (done.returncode, text in done.stderr) == (UNAVAILABLE, True), done
    relay._environment["PATH"] = str(tmp_path)
    done = relay.cli("backup", str(tmp_path / "copy"))
    assert (done.returncode, "there is no pg_dump in PATH" in done.stderr) == (UNAVAILABLE, True)
    assert not (tmp_path / "copy").exists()


def test_verify_names_what_was_accepted_and_is_in_no_spool(sql, serve) -> None:
    relay = serve()
    for subject in ("before", "kept", "lost"):
        relay.until_final(relay.send_mail(to=["bob@example.test"], subject=subject))
    done = relay.cli("storage", "verify")
    assert (done.returncode, "0 faults" in done.stdout) == (OK, True), done
    remove = (
        "DELETE FROM submission WHERE message_id ="
        " (SELECT id FROM message WHERE subject = '{}') RETURNING key"
    )
    sql(relay, remove.format("before"))  # as with a new spool, after one that was empty
    (gone,) = sql(relay, remove.format("lost")).split()
    sql(relay, "DELETE FROM message WHERE subject <> 'kept'")
    sql(relay, "DELETE FROM recipient WHERE message_id NOT IN (SELECT id FROM message)")
    done = relay.cli("storage", "verify")
    found = f"lost-message      submission {gone} of alice@example.test: found step 4 at 20"
    assert (done.returncode, found in done.stdout) == (DATA, True), done.stdout
    assert done.stdout.count("lost-message") == 1
    sql(relay, "UPDATE recipient SET state = 'queued'")
    done = relay.cli("storage", "verify", "--log", "-", stdin=relay.log)
    assert done.stdout.count("; log: delivered bob@example.test") == 2  # "before" too
    assert done.stdout.count("sent-before") == 1, done.stdout
    log = "".join(line for line in relay.log.splitlines(True) if "bob@" not in line)
    done = relay.cli("storage", "verify", "--log", "-", stdin=log)
    assert done.stdout.count("; log: no result bob@example.test") == 2, done.stdout
