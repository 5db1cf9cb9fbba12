"""docs/policy.md: its rules load, their tests pass, and its commands print what it says."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli.errors import report_error
from relay.cli.root import cli
from relay.policy.rule_files import load_rules
from relay.policy.rule_tests import untested
from relay.settings.environment import shipped

PAGE = (Path(__file__).parents[3] / "docs/policy.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(PAGE)
RULES = [text for kind, text in BLOCKS if kind == "toml"]
COMMANDS = [text for _, text in BLOCKS if text.startswith("$ relay policy ")]
FIRST = PAGE.partition("\n## A rule\n")[0]
GROUPS = [text for _, text in BLOCKS if text.startswith("# groups/")]

# What the commands are run on.
BAD = """[[rule]]
name = "mark outside mail"
when = { subjects = "*x*" }
then = [ { discard = true }, { subject_prefix = "[EXTERNAL]" } ]

[[rule]]
name = "late"
then = [ { reject = "4.7.1 later" } ]
"""
FAILING = """[[rule]]
name = "mark mail from outside"
then = [ { subject_prefix = "[EXTERNAL]" } ]

[[test]]
name = "mail from outside is marked"
from = "a@other.test"
to = ["b@example.org"]
subject = "Hello"
[test.expect]
verdict = "accept"
rules = ["mark mail from outside"]
subject = "[EXTERNAL]  Hello"
"""
MESSAGE = (
    b"Subject: Setup\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Disposition: attachment; filename=setup.exe\r\n\r\nx\r\n--b--\r\n"
)
SETTINGS = """hostname = "relay.example.org"
state_dir = "state"
[mailboxes]
domains = ["example.org"]
"""


@pytest.mark.parametrize("text", RULES, ids=lambda text: re.findall(r'name = "(.*?)"', text)[0])
def test_an_example_loads_and_its_rules_have_tests(tmp_path, text):
    (tmp_path / "groups").mkdir()
    for group in GROUPS:
        first, _, rest = group.partition("\n")
        (tmp_path / first.removeprefix("# ")).write_text(rest, encoding="utf-8")
    (tmp_path / "10-example.toml").write_text(text, encoding="utf-8")
    rules = load_rules(tmp_path)
    assert rules.rules
    assert [rule.name for rule in untested(rules)] == []


def matches(expected: str, printed: str) -> bool:
    """Whether a text is printed; "…" stands for any text, and in a line of its own for any lines."""
    parts = [re.escape(part).replace("…", ".*") for part in expected.split("…\n")]
    return re.fullmatch("(?:.*\n)*".join(parts), printed) is not None


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.splitlines()[0][15:40])
def test_a_command_prints_what_the_page_says(tmp_path, monkeypatch, block):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAY_CONFIG", "relay.toml")
    if block in FIRST:  # there is no other rule
        (tmp_path / "policies").mkdir()
        (tmp_path / "policies/10-mark.toml").write_text(RULES[0])
    else:
        shutil.copytree(shipped("policies"), "policies")
    for name, text in {"bad/40-x.toml": BAD, "failing/40-x.toml": FAILING,
                       "relay.toml": SETTINGS, "one.eml": MESSAGE.decode()}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for command, expected in re.findall(r"^\$ relay (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
        done = CliRunner().invoke(cli, command.split(), standalone_mode=False)
        code = report_error(done.exception) if done.exception else 0
        printed = done.output + (f"{done.exception}\n" if f"{done.exception or ''}" else "")
        wanted = expected.rstrip("\n") + "\n"
        assert matches(wanted, printed), f"{code}\n{printed}"


def test_the_page_has_examples():
    assert (len(RULES) >= 3, len(COMMANDS) >= 4) == (True, True)
