"""docs/policy.md and its pages: their rules load, their tests pass, and its commands print what it says."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.base.settings.environment import shipped
from relay.operation.cli.errors import report_error
from relay.operation.cli.root import cli
from relay.transport.policy.actions import ACTIONS
from relay.transport.policy.conditions import CONDITIONS
from relay.transport.policy.rule_files import load_rules
from relay.transport.policy.rule_tests import untested
from tests.support.tables import each_row

DOCS = Path(__file__).parents[4] / "docs"
PAGES = [
    (DOCS / f"{name}.md").read_text()
    for name in ("policy", "policy-conditions", "policy-actions", "policy-tests")
]
PAGE = "\n".join(PAGES)
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
HOLD = """[[rule]]
name = "hold programs"
when = { attachment_name = "*.exe" }
then = [ { hold = "a program" } ]
"""
ENVELOPE = "Return-Path: <carol@other.test>\r\nDelivered-To: bob@example.org\r\n"
SETTINGS = """hostname = "relay.example.org"
state_dir = "state"
[mailboxes]
domains = ["example.org"]
"""


def with_groups(directory: Path) -> None:
    """Write the groups of the page."""
    (directory / "groups").mkdir()
    for group in GROUPS:
        first, _, rest = group.partition("\n")
        (directory / first.removeprefix("# ")).write_text(rest, encoding="utf-8")


def cells(heading: str, column: int) -> list[tuple[str, str]]:
    """The key and the code in a column of each row of the first table of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n\n- ")[0].partition("\n```")[0]
    rows = [row.split(" | ") for row in section.splitlines() if row.startswith("| ")]
    return [
        (row[0].strip("| `"), code[1])
        for row in rows
        if len(row) > column and (code := re.search("`(.*?)`", row[column]))
    ]


@pytest.mark.parametrize("key", CONDITIONS)
def test_each_condition_has_an_example_that_loads(tmp_path, key):
    examples = [code for _, code in cells("Conditions", 2) if code.startswith(f"{key} = ")]
    assert examples
    with_groups(tmp_path)
    for number, code in enumerate(examples):
        text = f"[[rule]]\nname = 'r{number}'\nwhen = {{ {code} }}\nthen = [ {{ hold = 'x' }} ]\n"
        (tmp_path / f"{number}.toml").write_text(text, encoding="utf-8")
    assert len(load_rules(tmp_path).rules) == len(examples)


@each_row("key", ACTIONS)
def test_the_value_of_each_action_loads(tmp_path, key):
    if code := dict(cells("Actions", 2)).get(key):
        text = f"[[rule]]\nname = 'r'\nthen = [ {{ {key} = {code} }} ]\n"
        (tmp_path / "10.toml").write_text(text, encoding="utf-8")
        assert load_rules(tmp_path).rules


@pytest.mark.parametrize("text", RULES, ids=lambda text: re.findall(r'name = "(.*?)"', text)[0])
def test_an_example_loads_and_its_rules_have_tests(tmp_path, text):
    with_groups(tmp_path)
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
    for name, text in {
        "bad/40-x.toml": BAD,
        "failing/40-x.toml": FAILING,
        "relay.toml": SETTINGS,
        "one.eml": MESSAGE.decode(),
        "mail/bob/cur/1795600000.1.host:2,": ENVELOPE + "\n",
        "mail/bob/cur/1795600000.2.host:2,S": ENVELOPE + MESSAGE.decode(),
        "mail/notes.eml": "Subject: Notes\n\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copytree("policies", "new", dirs_exist_ok=True)
    (tmp_path / "new/10-executables.toml").unlink(missing_ok=True)
    (tmp_path / "new/10-hold.toml").write_text(HOLD)
    for command, expected in re.findall(r"^\$ relay (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
        done = CliRunner().invoke(cli, command.split(), standalone_mode=False)
        code = report_error(done.exception) if done.exception else 0
        printed = done.output + (f"{done.exception}\n" if f"{done.exception or ''}" else "")
        wanted = expected.rstrip("\n") + "\n"
        assert matches(wanted, printed), f"{code}\n{printed}"


def test_the_page_has_examples():
    assert (len(RULES) >= 3, len(COMMANDS) >= 3) == (True, True)
