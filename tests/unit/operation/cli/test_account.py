"""`relay account`: what it does to accounts.toml, and what a relay accepts afterwards."""

import fcntl
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import uvloop
from click.testing import CliRunner, Result

from relay.base.accounts.accounts_file import load_accounts
from relay.base.clock import SystemClock
from relay.operation.app.development_folder import MARK
from relay.operation.cli.errors import report_error
from relay.operation.cli.root import cli
from tests.support.tables import each_row

CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[mailboxes]
domains = ["example.test"]
"""
ACCOUNTS = """\
# The people.

[[account]]   # the first
address = "Alice@example.test"  # she
token = 'plain:alice' # for trials
aliases = [
  "sales@example.test",  # since May
]

# Bob is new.
[[account]]
  address = "bob@example.test"
  password = "plain:bob"
# The end.
"""
NOTHING = dict.fromkeys(("password", "token", "client_secret"), False)


class Files:
    """A configuration, and the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accounts = folder / "accounts.toml"
        (folder / "relay.toml").write_text(CONFIG)
        self.accounts.write_text(ACCOUNTS)
        self.accounts.chmod(0o600)

    def __call__(self, *words: str, stdin: str | None = None) -> Result:
        arguments = ["account", "--config", str(self.folder / "relay.toml"), *words]
        return CliRunner().invoke(cli, arguments, input=stdin, standalone_mode=False)

    def made(self, *words: str, stdin: str | None = None) -> Any:
        done = self(*words, "--json", stdin=stdin)
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    def fails(self, *words: str, stdin: str | None = None) -> tuple[int, str]:
        """Return the exit code and the text of a command that changes nothing."""
        before = self.accounts.read_bytes()
        done = self(*words, stdin=stdin)
        assert self.accounts.read_bytes() == before
        assert list(self.folder.glob(".*")) == []
        assert done.exit_code, done.stdout
        assert done.exception is not None
        return report_error(done.exception), str(done.exception)

    @property
    def text(self) -> str:
        return self.accounts.read_text()

    def load(self) -> Any:
        return load_accounts(self.accounts, ["example.test"], clock=SystemClock(), environ={})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_add_appends_an_account_with_a_token(files: Files) -> None:
    made = files.made(
        "add", "Carol@Example.test", "--alias", "info@example.test", "--quota", "2 GiB"
    )
    assert set(made) == {"address", "token"}
    assert made["address"] == "carol@example.test"
    assert files.text.startswith(ACCOUNTS)
    assert made["token"] not in files.text
    assert files.accounts.stat().st_mode & 0o777 == 0o600  # as it was
    accounts = files.load()
    assert accounts.by_token(made["token"]).address == "carol@example.test"
    assert accounts.by_address("info@example.test").quota == 2 * 1024**3
    accounts.close()


def test_add_makes_the_first_account(files: Files) -> None:
    files.accounts.unlink()
    made = files.made("add", "carol@example.test")
    assert files.accounts.stat().st_mode & 0o777 == 0o640
    assert files.text.startswith("[[account]]\naddress")
    accounts = files.load()
    assert accounts.by_token(made["token"]) is not None
    accounts.close()


async def test_add_makes_a_client_for_azure_identity(files: Files) -> None:
    made = files.made(
        "add",
        "app@example.test",
        "--client",
        "--no-token",
        "--scope",
        "Mail.Send",
        "--acts-for",
        "*@example.test",
    )
    assert set(made) == {"address", "client_id", "client_secret"}
    assert made["client_secret"] not in files.text
    accounts = files.load()
    found = await accounts.by_client_secret(made["client_id"], made["client_secret"], client="")
    assert found.account.address == "app@example.test"
    assert found.account.acts_for == ("*@example.test",)
    assert list(found.account.scopes) == ["Mail.Send"]
    assert await accounts.by_client_secret(made["client_id"], "other", client="") is None
    accounts.close()


def test_a_password_comes_from_standard_input(files: Files) -> None:
    files.made("password", "bob@example.test", stdin="pass wörd\n")
    assert "wörd" not in files.text
    assert "# Bob is new." in files.text
    accounts = files.load()
    login = accounts.by_password("bob@example.test", "pass wörd", client="")
    assert uvloop.run(login).address == "bob@example.test"
    accounts.close()
    files.made("password", "bob@example.test", "--remove")
    assert "password" not in files.text


@each_row("stdin", ["", "\n", "x" * 1025 + "\n"])
def test_an_empty_or_endless_password_is_refused(files: Files, stdin: str) -> None:
    code, text = files.fails("password", "bob@example.test", stdin=stdin)
    assert (code, "expected a password of 1 to 1024 bytes" in text) == (65, True)


def test_a_token_is_replaced_where_it_stands(files: Files) -> None:
    made = files.made("token", "alice@example.test")
    lines = files.text.splitlines()
    assert lines[4].endswith(" # for trials")
    assert "sha256:" in lines[4]
    rest = [one for number, one in enumerate(lines) if number != 4]
    expected = [one for number, one in enumerate(ACCOUNTS.splitlines()) if number != 4]
    assert rest == expected
    accounts = files.load()
    assert accounts.by_token("alice") is None
    assert accounts.by_token(made["token"]).address == "alice@example.test"
    accounts.close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (
            "alice@example.test",
            "# The people.\n\n# Bob is new.\n" + ACCOUNTS.partition("# Bob is new.\n")[2],
        ),
        ("bob@example.test", ACCOUNTS.partition("[[account]]\n")[0] + "# The end.\n"),
    ],
)
def test_remove_keeps_the_comments_around(files: Files, address: str, expected: str) -> None:
    assert files.made("remove", address) == {"address": address}
    assert files.text == expected
    assert len(tomllib.loads(files.text)["account"]) == 1


def test_list_shows_no_secret(files: Files) -> None:
    found = files.made("list")
    assert [one["address"] for one in found] == ["alice@example.test", "bob@example.test"]
    assert found[0]["has"] == NOTHING | {"token": True}
    assert "plain" not in json.dumps(found)
    assert files.made("list", "bob@example.test") == found[1:]
    assert files("list").stdout == "alice@example.test  token\nbob@example.test  password (PLAIN)\n"


@each_row(
    "words, code, expected",
    [
        (("add", "bob@example.test"), 65, "there is such an account already"),
        (("add", "sales@example.test"), 65, "there is such an account already"),
        (
            ("add", "carol@other.test"),
            65,
            "expected an address in mailboxes.domains (example.test)",
        ),
        (("add", "carol"), 64, "expected an address such as"),
        (("add", "c@example.test", "--quota", "much"), 78, "accounts.toml:18: account[2].quota"),
        (("add", "c@example.test", "--scope", "Mail.Sned"), 78, '(did you mean "Mail.Send"?)'),
        (("add", "c@example.test", "--alias", "bob@example.test"), 78, "expected one of its own"),
        (("remove", "carol@example.test"), 65, "unknown account"),
        (("remove", "sales@example.test"), 65, "unknown account"),
        (("token", "carol@example.test"), 65, "unknown account"),
        (("list", "carol@example.test"), 65, "unknown account"),
        (("add",), 64, "Missing parameter: address"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    files: Files, words: tuple[str, ...], code: int, expected: str
) -> None:
    found, text = files.fails(*words)
    assert (found, expected in text) == (code, True), text


@each_row(
    "text, code, expected",
    [
        ("account = [", 78, ""),
        ("[[account]]\naddress = 5\n", 78, "accounts.toml:2: account[0].address"),
        ('account = [{ address = "a@example.test" }]', 65, "expected [[account]] tables"),
        (f"{MARK}: by it\n", 65, "the development relay makes accounts by itself"),
    ],
)
def test_a_file_that_cannot_be_edited_stays(
    files: Files, text: str, code: int, expected: str
) -> None:
    files.accounts.write_text(text)
    found, shown = files.fails("add", "carol@example.test")
    assert (found, expected in shown) == (code, True), shown


def test_a_link_stays_a_link(files: Files) -> None:
    real = files.folder / "real"
    real.mkdir()
    files.accounts.rename(real / "people.toml")
    files.accounts.symlink_to(real / "people.toml")
    files.made("add", "carol@example.test")
    assert files.accounts.is_symlink()
    assert "carol" in (real / "people.toml").read_text()


def test_changes_at_once_wait_for_each_other(files: Files) -> None:
    words = [sys.executable, "-m", "relay", "account", "add", "--json", "--config"]
    lock = os.open(files.folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    started = [
        subprocess.Popen(
            [*words, str(files.folder / "relay.toml"), f"u{number}@example.test"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    with pytest.raises(subprocess.TimeoutExpired):
        started[0].wait(1)
    os.close(lock)
    for one in started:
        out, _ = one.communicate(timeout=120)
        assert one.returncode == 0
        assert json.loads(out)["token"]
    assert len(files.made("list")) == 4
