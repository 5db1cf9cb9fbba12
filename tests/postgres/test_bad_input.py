"""Rights that the role lacks, tables that are not ours, and rows that somebody has deleted."""

import asyncio

import pytest

from tests.postgres.test_server_away import ready_status, submit_code
from tests.postgres.test_whole_relay import HOURLY
from tests.support.postgres import PostgresServer, database_of
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

OK, CONFIGURATION, UNAVAILABLE = 0, 78, 69
LARGE = b"Subject: large\r\n\r\n" + b"0123456789 0123456789\r\n" * 60_000
SMALL = b"Subject: small\r\n\r\nx\r\n"
LATER = "450 4.2.0 greylisted, try again later"


@pytest.fixture
def stopped():
    """A relay that was not started yet."""
    relay = RelayProcess()
    yield relay
    relay.close()


def url_of(relay: RelayProcess) -> str:
    return str(relay.config["spool"]["url"])


def connect_by(relay: RelayProcess, url: str) -> None:
    relay.config = relay.config | {"spool": {"url": url}}
    relay.write_config(relay.config)


def test_a_password_that_is_put_right(server: PostgresServer, stopped: RelayProcess) -> None:
    name = database_of(url_of(stopped))
    server.sql(
        f"CREATE ROLE {name}_other LOGIN PASSWORD 'first'; ALTER DATABASE {name} OWNER TO"
        f" {name}_other"
    )
    (stopped.folder / "password").write_text("second\n")
    (stopped.folder / "password").chmod(0o600)
    at = f"127.0.0.1:{server.port}/{name}"
    connect_by(stopped, f"postgresql://{name}_other:${{file:password}}@{at}")
    done = stopped.cli("check")
    assert done.returncode == UNAVAILABLE
    assert f"postgresql://{at}: the server refuses the password" in done.stderr
    stopped.start()
    assert (ready_status(stopped), submit_code(stopped, 1)) == (503, 451)
    assert "the server refuses the password" in stopped.log
    server.sql(f"ALTER ROLE {name}_other PASSWORD 'second'")
    until("ready", lambda: ready_status(stopped) == 200)
    assert submit_code(stopped, 2) == 250
    server.sql(f"ALTER ROLE {name}_other PASSWORD 'third'")  # rotated
    server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    until("refused", lambda: ready_status(stopped) == 503)
    (stopped.folder / "password").write_text("third\n")
    assert stopped.cli("reload").stdout == "reloaded: 0 rules, 0 new certificates\n"
    until("ready again", lambda: ready_status(stopped) == 200)
    assert submit_code(stopped, 3) == 250
    for secret in ("first", "second", "third"):
        assert secret not in stopped.log + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE TABLE message (id int)", "has a table message of another program, or of a Relay"),
        ("CREATE TABLE schema_version (name text)", "has a table schema_version of another"),
        ("ALTER TABLE schema_version RENAME TO migration", "of a Relay before 0.2.0"),
        ("INSERT INTO schema_version VALUES (99, 0)", "the spool has schema 99, of a newer Relay"),
    ],
)
def test_tables_of_others_and_of_a_newer_relay(
    server: PostgresServer, stopped: RelayProcess, sql, statement: str, said: str
) -> None:
    if not statement.startswith("CREATE"):
        stopped.start()
        stopped.stop()
    sql(stopped, statement)
    for verb in ("check", "serve", "queue list"):
        done = stopped.cli(*verb.split())
        assert done.returncode == CONFIGURATION, done.stderr
        assert said in done.stderr
    assert sql(stopped, "SELECT to_regclass('entry')") in ("", "entry")


def test_a_right_that_is_lost_while_the_relay_runs(remotes: Remotes, sql, serve) -> None:
    """New mail is refused for now, what a host has taken is recorded later, and nothing is lost."""
    gate = asyncio.Event()
    mx = remotes.start("a.test", gates={"DOT": gate})
    relay = serve(remotes)
    identity = relay.send_mail(to=["x@a.test"], subject="once")
    remotes.run(mx.reached("DOT"))
    role = sql(relay, "SELECT tableowner FROM pg_tables WHERE tablename = 'message'")
    tables = "message, entry, recipient, event"
    sql(relay, f"REVOKE INSERT, UPDATE, DELETE ON {tables} FROM {role}")
    assert submit_code(relay, 1) == 451
    waits = relay.send_mail(to=["bob@example.test"], subject="waits")
    remotes.open_gate(gate)
    until("the host has it", lambda: mx.envelopes)
    assert "the role lacks a right that the spool needs" in relay.log
    check = relay.cli("check")
    assert check.returncode == UNAVAILABLE
    assert "the role relay may not change the table entry" in check.stderr
    sql(relay, f"GRANT INSERT, UPDATE, DELETE ON {tables} TO {role}")
    assert relay.until_final(identity)["state"] == "relayed"
    assert relay.until_final(waits)["state"] == "delivered"
    assert submit_code(relay, 2) == 250
    received(mx, "x@a.test")
    until("counted", lambda: relay.metric("relay_queue_entries") == 0)
    assert relay.metric("relay_queue_unaccounted") == 0


@pytest.mark.parametrize(
    ("content", "table", "said"),
    [
        (LARGE, "body", "expected 1"),
        (SMALL, "content", "/0 is not in the spool"),
        (LARGE, "content", "/0 is not in the spool"),
    ],
    ids=["a part of a body", "a content", "a large content"],
)
def test_a_row_that_somebody_has_deleted(
    remotes: Remotes, sql, content: bytes, table: str, said: str, serve
) -> None:
    """The entry is held, and says why; it is delivered once the row is back."""
    mx = remotes.start("a.test", rcpt={"x@a.test": LATER})
    relay = serve(remotes, config=HOURLY)
    queue_id = relay.submit("alice@example.test", ["x@a.test"], content)
    other = relay.submit("alice@example.test", ["x@a.test"])
    for one in (queue_id, other):
        relay.until_state(one, "deferred")
    key = f"message_id = '{queue_id}'" if table == "content" else "part = 1"
    sql(relay, f"CREATE TABLE kept AS SELECT * FROM {table} WHERE {key}")
    sql(relay, f"DELETE FROM {table} WHERE {key}")
    mx.rcpt.clear()

    def entry() -> dict:
        return next(one for one in relay.queue() if one["id"] == queue_id)

    while entry()["state"] != "held":
        assert relay.cli("queue", "retry", queue_id).returncode == OK
        until(
            "it was read again",
            lambda: entry()["recipients"][0]["reply"] != LATER or entry()["state"] == "held",
        )
        until("it is not in flight", lambda: not entry()["claimed"])
    told = relay.cli("trace", queue_id).stdout + relay.cli("queue", "list", queue_id).stdout
    assert said in told
    assert relay.cli("queue", "retry", other).returncode == OK
    relay.until_state(other, "relayed")  # others go on
    sql(relay, f"INSERT INTO {table} SELECT * FROM kept")
    assert relay.cli("queue", "release", queue_id).returncode == OK
    relay.until_state(queue_id, "relayed")
    until("it came", lambda: len(mx.envelopes) == 2)
    until("counted", lambda: relay.metric("relay_queue_entries") == 0)
    assert relay.metric("relay_queue_unaccounted") == 0
