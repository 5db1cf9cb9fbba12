"""`relay queue` on the files of a relay that does not run: what it does, says, and how it exits."""

import asyncio
import json
import signal
import sqlite3
import threading
from contextlib import closing

import pytest
from click.testing import CliRunner

from relay.base.clock import SystemClock
from relay.base.settings.reader import load
from relay.operation.cli.errors import INTERRUPTED, CommandError
from relay.operation.cli.root import cli
from relay.operation.commands.operator_client import OperatorClient
from tests.support import relay_starts
from tests.support.spools import new_message, spool_on
from tests.support.tables import each_row

DATA, TRY_LATER, CONFIGURATION = 65, 75, 78


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text(
        'hostname = "relay.example.test"\nstate_dir = "state"\n'
        '[mailboxes]\ndomains = ["example.test"]\nroot = "mail"\naccounts = "accounts.toml"\n'
        '[[route]]\ndomain = "b.test"\nnext_hop = "smtp://smart.test:26"\n'
    )
    accounts = tmp_path / "accounts.toml"
    accounts.write_text('[[account]]\naddress = "alice@example.test"\npassword = "plain:a"\n')
    accounts.chmod(0o600)
    return file


@pytest.fixture
def queued(config):
    """Three messages, to a.test, b.test and c.test; their ids."""

    async def fill():
        async with spool_on(load(config, {}).spool_file) as spool:
            return [
                (await spool.accept(
                    new_message([(f"mx:{name}", f"x@{name}")], message_id=f"<{name}>"), claim=False
                )).queue_id
                for name in ("a.test", "b.test", "c.test")
            ]  # fmt: skip

    return asyncio.run(fill())


class CtrlC(SystemClock):
    """A clock of somebody who does not wait for more than one slice of an order."""

    def __init__(self, spool):
        super().__init__()
        self._spool = spool

    def queue_us(self):
        with closing(sqlite3.connect(f"file:{self._spool}?mode=ro", uri=True)) as spool:
            if held(spool) and threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
        return super().queue_us()


def held(spool):
    return spool.execute("SELECT count(*) FROM entry WHERE state = 'held'").fetchone()[0]


@pytest.fixture
def hasty(config, monkeypatch):
    """The file of a spool with a long queue, and an operator who is in a hurry."""
    file = load(config, {}).spool_file

    async def fill():
        hops = [(f"mx:{n}.test", f"x@{n}.test") for n in range(900)]
        async with spool_on(file) as spool:
            await spool.accept(new_message(hops, reverse_path=""), claim=False)

    asyncio.run(fill())
    monkeypatch.setattr("relay.operation.cli.queue.SystemClock", lambda: CtrlC(file))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield file
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_reports_how_many_entries_were_done(relay, hasty):
    done = relay("hold", "--all")
    assert isinstance(done.exception, CommandError), done.output
    assert done.exception.code == INTERRUPTED
    with closing(sqlite3.connect(hasty)) as spool:
        held_now = held(spool)
    assert 0 < held_now < 900
    assert str(done.exception) == (
        f"relay queue hold: interrupted: {held_now} entries changed, the others unchanged"
    )
    done = relay("hold", "--all", "--dry-run")
    assert str(done.exception) == "relay queue hold: interrupted: a dry run changes nothing"


@pytest.fixture
def relay(config):
    def relay(*words):
        return CliRunner().invoke(cli, ["queue", *words, "--config", str(config)])

    return relay


def states(relay):
    return {one["next_hop"]: one["state"] for one in json.loads(relay("list", "--json").stdout)}


def test_hold_release_and_cancel(relay, queued):
    done = relay("hold", queued[0], "<b.test>", "--reason", "looks like spam")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "held 2 of 2 entries"
    assert "looks like spam" in done.stdout
    assert states(relay) == {"mx:a.test": "held", "mx:b.test": "held", "mx:c.test": "queued"}
    assert relay("release", "--state", "held", "--domain", "b.*").stdout.endswith(
        "released 1 of 1 entry\n"
    )
    done = relay("cancel", "--state", "held", "--json")
    assert [one["state"] for one in json.loads(done.stdout)] == ["cancelled"]
    assert done.stderr == "relay queue cancel: cancelled 1 of 1 entry\n"
    assert states(relay) == {"mx:b.test": "queued", "mx:c.test": "queued"}
    shown = relay("show", queued[0]).stdout
    assert "hold by " in shown
    assert "because: looks like spam" in shown
    assert "cancel by " in shown


def test_a_reroute_by_a_route_has_its_name(relay, config, queued):
    config.write_text(config.read_text().replace("[[route]]", '[[route]]\nname = "smart"'))
    done = relay("reroute", "--domain", "a.test", "--to", "route:smart")
    assert done.stdout == "rerouted 1 of 1 entry\n"
    (one,) = json.loads(relay("list", "--route", "smart", "--json").stdout)
    assert (one["id"], one["next_hop"], one["route"]) == (
        queued[0],
        "smtp://smart.test:26",
        "smart",
    )
    unknown = relay("reroute", "--all", "--to", "route:smrt").stderr
    assert "Error: --to: found 'smrt', expected the name of a route to hosts: smart" in unknown


@each_row("until", ["2h", "2099-01-01T00:00:00Z"])
def test_a_hold_with_an_end(relay, queued, until):
    done = relay("hold", queued[0], "--until", until, "--json")
    (one,) = json.loads(done.stdout)
    assert one["held_until"] == one["due"] is not None
    assert "held until " in relay("list").stdout


def test_unknown_ids_are_reported_and_the_rest_is_done(relay, queued):
    done = relay("hold", queued[0], "nobody-knows", "<m@x>")
    assert isinstance(done.exception, CommandError)
    assert done.exception.code == DATA
    assert str(done.exception) == ('relay queue hold: not in the queue: "nobody-knows", "<m@x>"')
    assert states(relay)["mx:a.test"] == "held"


@each_row("operation", ["retry", "hold", "release", "cancel"])
def test_queue_commands_require_a_selection(relay, queued, operation):
    done = relay(operation)
    assert done.exit_code == 2
    assert "expected a selector: ID, a condition, or --all" in done.stderr


@each_row(
    "words, fault",
    [
        (["--sender", "", "--domain", "a.test"], "'--sender': found 0 letters"),
        (["--older-than", "", "--domain", "a.test"], "'--older-than': found 0 letters"),
        (["--domain", "a.test", "--domain", "b.test"], "'--domain': is given twice"),
        (["--state", "held", "--state", "queued"], "'--state': is given twice"),
        (["--recipient", "a" * 1001], "'--recipient': found 1001 letters"),
    ],
)
def test_invalid_conditions_are_rejected(relay, queued, words, fault):
    done = relay("cancel", *words)
    assert done.exit_code == 2
    assert fault in done.stderr


@each_row(
    "words, fault",
    [
        (["hold", "--all", "--until", "yesterday"], "Error: --until: found 'yesterday'"),
        (["hold", "--all", "--reason", "a\nb"], "Error: --reason: expected one line"),
        (["reroute", "--all", "--to", "nowhere"], "Error: --to: found 'nowhere'"),
    ],
)
def test_invalid_options_are_rejected(relay, queued, words, fault):
    done = relay(*words)
    assert done.exit_code == 2  # that of click, which becomes 64
    assert fault in done.stderr


@pytest.mark.parametrize(
    "words",
    [["queue", "list"], ["storage", "verify"], ["storage", "prune"],
     ["storage", "backup", "copy"]],
)  # fmt: skip
def test_a_directory_in_place_of_the_spool_is_a_configuration_error(config, words):
    spool = load(config, {}).spool_file
    spool.mkdir(parents=True)
    command, folder = [*relay_starts.RELAY, "--config", str(config), *words], config.parent
    done = relay_starts.run(command, cwd=folder, env=relay_starts.environment(folder))
    assert f"{spool}: found a directory, expected the spool's file" in done.stderr
    assert done.returncode == CONFIGURATION
    assert list(spool.parent.glob("spool.sqlite?*")) == []


@each_row(
    "words, done, code",
    [
        (["hold", "--all"], 0, TRY_LATER),
        (["hold", "--all"], 1, None),
        (["hold", "--all", "--dry-run"], 0, None),
        (["retry", "--all"], 0, None),
    ],
)
def test_entries_in_flight_exit_with_try_later(relay, monkeypatch, words, done, code):
    def change(_self, _operation, _selector, **more):
        return {
            "matched": 2, "done": done, "unchanged": 0, "in_flight": 2 - done, "unknown": [],
            "dry_run": more["dry_run"], "entries": [],
        }  # fmt: skip

    monkeypatch.setattr(OperatorClient, "change", change)
    ended = relay(*words)
    assert f"{2 - done} in flight" in ended.stdout
    assert (ended.exception.code if ended.exception else None) == code


def test_queue_commands_without_a_state_dir(relay, config):
    assert "there is no spool" in relay("stats").stdout
    assert relay("hold", "--all").stdout == "held 0 of 0 entries\n"
