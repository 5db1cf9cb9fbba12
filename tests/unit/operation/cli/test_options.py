"""--config, --json and --help are accepted at every place."""

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from relay.base.settings import environment
from relay.operation.cli import options
from relay.operation.cli.root import cli
from tests.support.tables import each_row


def verbs(command=cli, words=()):
    """Every command that there is, as the words that call it."""
    if not isinstance(command, click.Group):
        return [words]
    context = click.Context(command)
    below = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [words, *(found for name, one in below for found in verbs(one, (*words, name)))]


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text('hostname = "relay.example.test"\nstate_dir = "state"\n')
    return str(file)


def everywhere(words, *option):
    """`words` with `option` before, between and behind them."""
    return [[*words[:place], *option, *words[place:]] for place in range(len(words) + 1)]


def test_in_the_image_the_development_relay_goes_before_the_default_file(config, monkeypatch):
    monkeypatch.delenv("RELAY_CONFIG", raising=False)
    monkeypatch.setattr(environment, "DEFAULT_CONFIG", Path(config))
    monkeypatch.setattr(options, "running_configs", lambda: [Path("running")])
    assert options.CommandContext().found_config_file() == Path(config)
    monkeypatch.setenv("RELAY_IMAGE", "1")
    assert options.CommandContext().found_config_file() == Path("running")
    monkeypatch.setattr(options, "running_configs", list)
    assert options.CommandContext().found_config_file() == Path(config)


@each_row("words", verbs())
def test_every_verb_has_a_help_that_says_what_it_does(words):
    text = CliRunner().invoke(cli, [*words, "--help"])
    assert text.exit_code == 0
    assert "--config" in text.output
    assert "--json" in text.output
    assert max(map(len, text.output.splitlines())) <= 80
    assert "..." not in re.sub(r"\[?[A-Z]+\]?\.\.\.", "", text.output.split("Commands:")[-1])


@each_row("arguments", everywhere(["queue", "list"], "--json"))
def test_json_may_stand_anywhere(arguments, config):
    text = CliRunner().invoke(cli, [*arguments, "--config", config])
    assert (text.exit_code, text.stderr) == (0, "")
    assert json.loads(text.stdout) == []


@each_row("arguments", everywhere(["queue", "list"], "--config", "FILE"))
def test_config_may_stand_anywhere(arguments, config):
    text = CliRunner().invoke(cli, [config if one == "FILE" else one for one in arguments])
    assert (text.exit_code, text.output) == (0, "0 entries, 0 recipients\n")


@each_row(
    "arguments, text",
    [
        (["trace", ""], "expected an id"),
        (["trace", "x" * 1001], "expected an id"),
        (["trace", "\udcff"], "expected an id"),
        (["wait", "last", "--state", "bogus"], "'bogus' is not one of"),
        (["wait", "last", "--timeout", "nan"], "expected a number of seconds"),
        (["wait", "last", "--timeout", "-1"], "not in the range"),
        (["queue", "retry"], "expected a selector"),
        (["queue", "list", "--older-than", "30"], '"4h", "2d"\n'),
        (["storage", "prune", "--older-than", "3x"], '--older-than: found "3x", expected'),
        (["send", "--body", "x"], "--to"),
        (["dev", "--http", "0.0.0.0:8025"], "--http 0.0.0.0:8025: other machines can reach"),
        (["dev", "--listen-all"], "expected --token TOKEN too"),
        (["dev", "--smtp", "127.0.0.1.example.test:25"], "expected an IP address or localhost"),
        (["dev", "--release-to", "http://a.test"], "expected smtp://HOST:PORT"),
        (["dev", "--token", "a b"], "without spaces"),
        (["check", "--as-process", "abc"], 'found "abc", expected the number of a process'),
        (["nonsense"], "No such command 'nonsense'."),
        (["trac", "last"], 'Did you mean "relay trace"?'),
        (["delete", "x"], 'Did you mean "relay queue cancel"?'),
        (["release"], 'Did you mean "relay queue release"?'),
        (["status"], 'Did you mean "relay queue stats"?'),
        (["tail"], 'Did you mean "relay list"?'),
        (["inbox"], 'Did you mean "relay list --to ADDRESS"?'),
    ],
)
def test_wrong_usage_says_what_is_expected(arguments, text, config):
    done = CliRunner().invoke(cli, [*arguments[:1], "--config", config, *arguments[1:]])
    assert done.exit_code == 2  # click's own; errors.py makes it 64
    assert text in done.stderr
    assert done.stdout == ""


def test_a_verb_of_two_words_that_is_not_there_leads_to_another():
    done = CliRunner().invoke(cli, ["queue", "delete", "x"])
    assert (done.exit_code, 'Did you mean "relay queue cancel"?' in done.stderr) == (2, True)
