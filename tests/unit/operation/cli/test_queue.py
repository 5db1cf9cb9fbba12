"""`relay queue` without a relay: what it refuses, what it says of an answer, and how it exits."""

import pytest
from click.testing import CliRunner

from relay.base.settings.reader import load
from relay.operation.cli.errors import INTERRUPTED, CommandError
from relay.operation.cli.root import cli
from relay.operation.commands.operator_client import OperatorClient
from relay.store.spool.queue_commands import NO_REPORTS
from tests.support import relay_starts
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


def interrupted(_self, _operation, _selector, **_more):
    raise KeyboardInterrupt


@pytest.fixture
def relay(config):
    def relay(*words):
        return CliRunner().invoke(cli, ["queue", *words, "--config", str(config)])

    return relay


@each_row(
    "more, expected",
    [
        ([], "entries changed before it stay changed; see `relay queue list`"),
        (["--dry-run"], "a dry run changes nothing"),
    ],
)
def test_ctrl_c_leaves_what_was_done(relay, monkeypatch, more, expected):
    monkeypatch.setattr(OperatorClient, "change", interrupted)
    done = relay("hold", "--all", *more)
    assert isinstance(done.exception, CommandError), done.output
    assert done.exception.code == INTERRUPTED
    assert str(done.exception) == f"relay queue hold: interrupted: {expected}"


@each_row("operation", ["retry", "hold", "release", "cancel"])
def test_queue_commands_require_a_selection(relay, operation):
    done = relay(operation)
    assert done.exit_code == 2
    assert "expected a selector: ID, a condition, or --all" in done.stderr


@each_row(
    "words, fault",
    [
        (["--sender", "", "--domain", "a.test"], "'--sender': found 0 letters"),
        (["--domain", "a.test", "--domain", "b.test"], "'--domain': is given twice"),
    ],
)
def test_invalid_conditions_are_rejected(relay, words, fault):
    done = relay("cancel", *words)
    assert done.exit_code == 2
    assert fault in done.stderr


@pytest.mark.parametrize(
    "words", [["queue", "list"], ["storage", "verify"], ["storage", "backup", "copy"]]
)
def test_a_directory_in_place_of_the_spool_is_a_configuration_error(config, words):
    spool = load(config, {}).spool_file
    spool.mkdir(parents=True)
    command, folder = [*relay_starts.RELAY, "--config", str(config), *words], config.parent
    done = relay_starts.run(command, cwd=folder, env=relay_starts.environment(folder))
    assert f"{spool}: found a directory, expected the spool's file" in done.stderr
    assert done.returncode == CONFIGURATION
    assert list(spool.parent.glob("spool.sqlite?*")) == []


@each_row("done, code", [(0, DATA), (1, None)])
def test_a_report_that_no_route_takes_is_an_error(relay, monkeypatch, done, code):
    def change(_self, _operation, _selector, **more):
        return {
            "matched": 2,
            "done": done,
            "unchanged": 2 - done,
            "unknown": [],
            "dry_run": more["dry_run"],
            "entries": [{"result": "unchanged", "note": NO_REPORTS}],
        }

    monkeypatch.setattr(OperatorClient, "change", change)
    monkeypatch.setattr(OperatorClient, "delivery_paused", lambda _: [])
    ended = relay("reroute", "--all", "--to", "route:r")
    assert (ended.exception.code if ended.exception else None) == code


def test_queue_commands_without_a_state_dir(relay, config):
    assert "there is no spool" in relay("stats").stdout
    assert "no relay is running" in str(relay("hold", "--all").exception)
