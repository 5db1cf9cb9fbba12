"""accounts.toml: who is found by what, and what is told about a wrong file."""

import hashlib
from pathlib import Path

import argon2
import pytest

from relay.accounts.account import AccountDirectory, Role
from relay.accounts.directory import ACCOUNTS_MAX, DevelopmentAccounts, FileAccounts, load_accounts
from relay.clock import ManualClock
from relay.settings.document import SettingsError

HASHED = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("pa55")
TWO = f"""
[[account]]
address = "Alice@Example.test"
password = "{HASHED}"
token = "sha256:{hashlib.sha256(b"alice-token").hexdigest()}"
aliases = ["info@example.test"]
quota = "10 MiB"
quota_messages = 5000
role = "operate"
send_as = ["Office@Elsewhere.test", "*@shared.test"]
[[account]]
address = "bob@example.test"
password = "plain:bob"
token = "plain:bob-token"
"""

SENDERS = [
    *("alice@example.test", "INFO@example.test", "office@elsewhere.test"),
    *("anybody@Shared.test", "*@shared.test"),
    *("bob@example.test", "x@elsewhere.test", "a@b.shared.test", "a@notshared.test"),
    *("shared.test", ""),
]


def load(path: Path, text: str, mode: int = 0o600, **environ: str) -> FileAccounts:
    file = path / "accounts.toml"
    file.write_text(text)
    file.chmod(mode)
    return load_accounts(file, ["example.test"], clock=ManualClock(), environ=environ)


def faults(path: Path, text: str, mode: int = 0o600, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path, text, mode, **environ)
    return str(caught.value)


def test_an_account_has_what_the_file_says(tmp_path):
    accounts: AccountDirectory = load(tmp_path, TWO)
    alice = accounts.by_address("alice@example.test")
    assert (alice.quota, alice.role) == (10 * 1024 * 1024, Role.OPERATE)
    assert alice.quota_messages == 5000
    assert alice.aliases == ("info@example.test",)
    assert [one for one in SENDERS if alice.may_send_as(one)] == SENDERS[:5]
    assert accounts.by_address("bob@example.test").quota is None


@pytest.mark.parametrize(
    ("address", "account"),
    [
        ("alice+lists@example.test", "alice@example.test"),
        ("Info+a+b@example.test", "alice@example.test"),
        ("alice+office@example.test", "office@example.test"),
        ("Alice+Shop@example.test", "alice+shop@example.test"),
        ("alice+shop+x@example.test", "alice@example.test"),
        ("+alice@example.test", None),
        ("office@elsewhere.test", "alice@example.test"),
        ("office+x@elsewhere.test", None),
    ],
)
def test_a_tagged_address_is_its_accounts_unless_another_account_has_it(tmp_path, address, account):
    text = TWO + (
        '[[account]]\naddress = "office@example.test"\naliases = ["alice+office@example.test"]\n'
        '[[account]]\naddress = "alice+shop@example.test"\n'
    )
    senders = [one.address for one in load(tmp_path, text).accounts if one.may_send_as(address)]
    assert senders == ([account] if account else [])


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("ALICE@EXAMPLE.TEST", "alice@example.test"),
        ("info@example.test", "alice@example.test"),
        ("bob+lists@example.test", "bob@example.test"),
        ("info+a+b@example.test", "alice@example.test"),
        ("carol@example.test", None),
        ("alice@other.test", None),
        ("alice", None),
        ("", None),
        ("+tag@example.test", None),
    ],
)
def test_by_address(tmp_path, address, owner):
    found = load(tmp_path, TWO).by_address(address)
    assert (found and found.address) == owner


@pytest.mark.parametrize(
    ("token", "owner"),
    [
        ("alice-token", "alice@example.test"),
        ("bob-token", "bob@example.test"),
        ("Bob-token", None),
        ("plain:bob-token", None),
        (hashlib.sha256(b"alice-token").hexdigest(), None),
        ("", None),
        ("x" * 100_000, None),
        ("\udcff", None),
    ],
)
def test_by_token(tmp_path, token, owner):
    found = load(tmp_path, TWO).by_token(token)
    assert (found and found.address) == owner


@pytest.mark.parametrize(
    ("user", "password", "owner"),
    [
        ("alice@example.test", "pa55", "alice@example.test"),
        ("INFO@example.test", "pa55", "alice@example.test"),
        ("bob@example.test", "bob", "bob@example.test"),
        ("alice@example.test", "pa5", None),
        ("alice@example.test", "", None),
        pytest.param("alice@example.test", HASHED, None, id="the hash is no password"),
        ("nobody@example.test", "AAAA", None),
        ("bob@example.test", "\udcff", None),
    ],
)
async def test_by_password(tmp_path, user, password, owner):
    accounts = load(tmp_path, TWO)
    found = await accounts.by_password(user, password, client="192.0.2.1")
    accounts.close()
    assert (found and found.address) == owner


async def test_an_account_without_password_or_token_cannot_log_in(tmp_path):
    accounts = load(tmp_path, AN_ACCOUNT)
    assert accounts.by_token("") is None
    assert await accounts.by_password("a@example.test", "", client="") is None
    accounts.close()


async def test_what_a_guesser_calls_itself_is_remembered_shortened(tmp_path):
    accounts = load(tmp_path, TWO)
    assert await accounts.by_password("x" * 9000, "guess", client="192.0.2.1") is None
    assert [len(name) for name, _ in accounts._checker._of_pairs._entries] == [320]
    accounts.close()


def test_every_fault_is_told_with_its_line_and_without_secrets(tmp_path):
    told = faults(
        tmp_path,
        """[[account]]
address = "alice@example.test"
password = "hunter2"
token = "sha256:hunter2"
sent_as = ["x@example.test"]
[[account]]
address = "bob@elsewhere.test"
aliases = ["alice@example.test"]
quota = "lots"
role = "admin"
send_as = ["bob@example.test", "nobody"]
[[acount]]
""",
        0o644,
    )
    lines = told.replace(f"{tmp_path}/", "").splitlines()
    assert [line.partition(": found")[0] for line in lines] == [
        "accounts.toml",
        "accounts.toml:3: account[0].password",
        "accounts.toml:4: account[0].token",
        "accounts.toml:5: account[0].sent_as",
        "accounts.toml:7: account[1].address",
        "accounts.toml:8: account[1].aliases[0]",
        "accounts.toml:9: account[1].quota",
        "accounts.toml:10: account[1].role",
        "accounts.toml:11: account[1].send_as[1]",
        "accounts.toml:12: acount",
    ]
    assert "hunter2" not in told
    assert 'did you mean "account"?' in told


AN_ACCOUNT = '[[account]]\naddress = "a@example.test"\n'
SAME_TOKEN = (
    f'{AN_ACCOUNT}token = "plain:same"\n[[account]]\naddress = "b@example.test"\ntoken = "{{}}"\n'
)
ONE_OF_ITS_OWN = "accounts.toml:6: account[1].token: found a token, expected one of its own"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SAME_TOKEN.format("plain:same"), [ONE_OF_ITS_OWN]),
        (SAME_TOKEN.format(f"sha256:{hashlib.sha256(b'same').hexdigest()}"), [ONE_OF_ITS_OWN]),
        (f"{AN_ACCOUNT}password = 31415926\n",
         ["accounts.toml:3: account[0].password: found something else, expected a text"]),
        (f'{AN_ACCOUNT}password = "{HASHED.replace("m=8,", "m=9999999,")}"\n', ["at most 1 GiB"]),
        (TWO.replace('"*@shared.test"', '"all*@shared.test"'),
         ["account[0].send_as[1]: found", '"*@DOMAIN" for all of a domain']),
    ],
    ids=["same token", "same hash of a token", "no text", "a hash that would eat the machine",
         "a star for part of a local part"],
)  # fmt: skip
def test_one_fault_is_told_without_secrets(tmp_path, text, expected):
    told = faults(tmp_path, text)
    assert [one for one in expected if one not in told] == []
    assert "31415926" not in told


def test_secrets_come_from_the_environment_and_stay_there(tmp_path):
    text = AN_ACCOUNT + 'token = "${env:TOKEN}"\n'
    accounts = load(tmp_path, text, TOKEN="plain:from-outside")
    assert accounts.by_token("from-outside").address == "a@example.test"
    assert not accounts.warnings()
    assert "oops" not in faults(tmp_path, text, TOKEN="oops")


def test_plain_secrets_are_warned_of(tmp_path):
    warnings = "\n".join(load(tmp_path, TWO).warnings())
    assert "accounts.toml:13: account[1].password" in warnings
    assert "accounts.toml:14: account[1].token" in warnings
    assert "account[0]" not in warnings


async def test_in_development_a_login_makes_an_account_but_mail_does_not():
    accounts: AccountDirectory = DevelopmentAccounts()
    assert accounts.by_address("carol@example.test") is None
    assert accounts.by_token("carol").address == "carol@example.test"
    assert accounts.by_address("Carol+x@example.test").address == "carol@example.test"
    dave = await accounts.by_password("dave@example.test", "dave", client="")
    assert dave.address == "dave@example.test"
    assert await accounts.by_password("erin", "wrong", client="") is None
    assert accounts.by_address("erin@example.test") is None
    assert accounts.by_token("alice@EXAMPLE.test") == accounts.by_address("alice@example.test")


@pytest.mark.parametrize("token", ["", "a b", "../x", "a@other.test", "a\r\nb", "x" * 65, ".a"])
def test_in_development_a_token_that_is_no_name_makes_no_account(token):
    assert DevelopmentAccounts().by_token(token) is None


def test_in_development_the_number_of_accounts_is_bounded():
    accounts = DevelopmentAccounts()
    made = [accounts.by_token(f"user{number}") for number in range(ACCOUNTS_MAX + 5)]
    assert made.count(None) == 5 + 2  # alice and bob were there
    assert accounts.by_token("bob") is not None
