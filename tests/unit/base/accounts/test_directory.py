"""accounts.toml: who is found by what, and what is told about a wrong file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import argon2
import pytest

from relay.base.accounts.account import (
    ALL_SCOPES,
    Account,
    AccountDirectory,
    LoginDelayedError,
    Role,
    Scope,
    UnknownUserError,
)
from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.directory import FileAccounts
from relay.base.accounts.passwords import FREE_FAILURES, FREE_FAILURES_OF_CLIENT
from relay.base.settings.document import SettingsError
from relay.base.settings.tree import OwnDomain
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row, rows_of

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

DOMAINS = ("example.test",)
SENDERS = [
    *("alice@example.test", "INFO@example.test", "office@elsewhere.test"),
    *("anybody@Shared.test", "*@shared.test"),
    *("bob@example.test", "x@elsewhere.test", "a@b.shared.test", "a@notshared.test"),
    *("shared.test", ""),
]


def load(
    path: Path,
    text: str,
    mode: int = 0o600,
    domains: Sequence[str | OwnDomain] = DOMAINS,
    **environ: str,
) -> FileAccounts:
    file = path / "accounts.toml"
    file.write_text(text)
    file.chmod(mode)
    return load_accounts(file, domains, clock=ManualClock(), environ=environ)


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


@each_row(
    "keys, dovecot_auth, is_used",
    [
        ("", "", False),
        ('password = "plain:x"', "", True),
        ('token = "plain:x"', "", True),
        ('client_id = "x"\nclient_secret = "plain:x"', "", True),
        ('acts_for = ["*@example.test"]', "", False),  # its own
        ('[[account]]\naddress = "a@example.test"\nacts_for = ["*@example.test"]', "", True),
        ("", "/run/auth", True),
    ],
)
def test_which_mailbox_is_in_use(
    keys: str, dovecot_auth: str, is_used: bool, tmp_path: Path
) -> None:
    tables = load(tmp_path, f'[[account]]\naddress = "u@example.test"\n{keys}').tables
    accounts = FileAccounts(tables, ManualClock(), dovecot_auth=dovecot_auth)
    assert accounts.is_in_use("u@example.test") is is_used


@each_row(
    "address, account",
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
    senders = [one.address for one in load(tmp_path, text).every() if one.may_send_as(address)]
    assert senders == ([account] if account else [])


@each_row(
    "address, owner",
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


@each_row(
    "token, owner",
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


@each_row(
    "user, password, owner",
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


@each_row(
    "text, expected",
    [
        (SAME_TOKEN.format("plain:same"), [ONE_OF_ITS_OWN]),
        (SAME_TOKEN.format(f"sha256:{hashlib.sha256(b'same').hexdigest()}"), [ONE_OF_ITS_OWN]),
        (
            f"{AN_ACCOUNT}password = 31415926\n",
            ["accounts.toml:3: account[0].password: found something else, expected a text"],
        ),
        (f'{AN_ACCOUNT}password = "{HASHED.replace("m=8,", "m=9999999,")}"\n', ["at most 1 GiB"]),
        (
            TWO.replace('"*@shared.test"', '"all*@shared.test"'),
            ["account[0].send_as[1]: found", '"*@DOMAIN" for all of a domain'],
        ),
    ],
)
def test_one_fault_is_told_without_secrets(tmp_path, text, expected):
    told = faults(tmp_path, text)
    assert [one for one in expected if one not in told] == []
    assert "31415926" not in told


def test_secrets_come_from_the_environment_and_stay_there(tmp_path):
    text = AN_ACCOUNT + 'token = "${env:TOKEN}"\n'
    accounts = load(tmp_path, text, TOKEN="plain:from-outside")
    assert accounts.by_token("from-outside").address == "a@example.test"
    assert not accounts.tables.warnings
    assert "oops" not in faults(tmp_path, text, TOKEN="oops")


CLIENT = f"""
[[account]]
address = "app@example.test"
aliases = ["service@example.test"]
client_id = "3F2504E0-4F89-11D3-9A0C-0305E82C3301"
client_secret = "{HASHED}"
scopes = ["Mail.Send", "SMTP.Send", "User.Read"]
acts_for = ["Bob@example.test", "*@shared.test"]
"""
CLIENT_ID = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"


@each_row(
    "client_id, secret, is_right",
    [
        (CLIENT_ID, "pa55", True),
        (CLIENT_ID.upper(), "pa55", True),
        (CLIENT_ID, "pa5", False),
        (CLIENT_ID, "", False),
        ("unknown", "pa55", False),
        ("app@example.test", "pa55", False),
        ("", "pa55", False),
        ("x" * 9000, "\udcff", False),
    ],
)
async def test_by_client_secret(tmp_path, client_id, secret, is_right):
    accounts = load(tmp_path, TWO + CLIENT, domains=("example.test", "shared.test"))
    found = await accounts.by_client_secret(client_id, secret, client="192.0.2.1")
    accounts.close()
    assert (found and found.account.address) == ("app@example.test" if is_right else None)


async def test_guessing_a_client_secret_is_delayed_as_guessing_a_password_is(tmp_path):
    accounts = load(tmp_path, TWO + CLIENT, domains=("example.test", "shared.test"))
    for number in range(FREE_FAILURES):
        guess = f"guess{number}"
        assert not await accounts.by_client_secret(CLIENT_ID, guess, client="192.0.2.1")
    with pytest.raises(LoginDelayedError):
        await accounts.by_client_secret(CLIENT_ID, "pa55", client="192.0.2.1")
    assert await accounts.by_client_secret(CLIENT_ID, "pa55", client="192.0.2.2")
    accounts.close()


async def test_an_account_is_unlocked_at_all_addresses_with_its_client_id(tmp_path):
    accounts = load(tmp_path, TWO + CLIENT, domains=("example.test", "shared.test"))
    home, office = "192.0.2.1", "192.0.2.2"
    for client in (home, office) * FREE_FAILURES:
        await accounts.by_password("app@example.test", "wrong", client=client)
        await accounts.by_client_secret(CLIENT_ID, "wrong", client=client)
    for number in range(FREE_FAILURES_OF_CLIENT - 2 * FREE_FAILURES):
        await accounts.by_password(f"{number}@example.test", "wrong", client=home)
    for client in (home, office):
        with pytest.raises(LoginDelayedError):
            await accounts.by_client_secret(CLIENT_ID, "pa55", client=client)
    assert accounts.unlock("Service@example.test") == 4
    assert accounts.unlock("app@example.test") == 0
    for client in (home, office):
        assert await accounts.by_client_secret(CLIENT_ID, "pa55", client=client)
    with pytest.raises(UnknownUserError):
        accounts.unlock("nobody@example.test")
    accounts.close()


def test_a_client_changes_with_its_secret(tmp_path):
    def digest(secret: str) -> bytes:
        text = f'{AN_ACCOUNT}client_id = "c"\nclient_secret = "plain:{secret}"\n'
        return load(tmp_path, text).by_client_id("C").secret_digest

    assert digest("one") == digest("one") != digest("two")


def test_scopes_and_acts_for(tmp_path):
    accounts = load(tmp_path, TWO + CLIENT, domains=("example.test", "shared.test"))
    app, bob = (accounts.by_address(f"{name}@example.test") for name in ("app", "bob"))
    assert app.scopes == {Scope.MAIL_SEND, Scope.SMTP_SEND, Scope.USER_READ}
    assert bob.scopes == ALL_SCOPES
    alice = accounts.by_address("alice@example.test")
    assert [app.may_open(one) for one in (app, bob, alice)] == [True, True, False]
    assert app.may_open(Account("anybody@shared.test"))
    assert app.may_open(Account("anybody@Shared.test"))
    assert not bob.may_open(app)


def test_an_alias_in_acts_for_opens_no_mailbox():
    app = Account("app@example.test", acts_for=("info@example.test", "*@shared.test"))
    assert not app.may_open(
        Account("alice@example.test", aliases=("info@example.test", "alice@shared.test"))
    )


ONE_CLIENT = 'client_id = "ID"\nclient_secret = "plain:s"\n'


def test_a_disabled_account_has_no_client(tmp_path):
    accounts = load(tmp_path, f"{AN_ACCOUNT}disabled = true\n{ONE_CLIENT}")
    assert accounts.by_client_id("ID") is None


@each_row(
    "lines, expected",
    [
        *rows_of(
            """
            client_id = "c" | client_id: found no client_secret, expected one
            client_secret = "plain:s" | client_secret: found no client_id, expected one
            client_id = "a b" / client_secret = "plain:s" | expected 1 to 128 ASCII characters
            client_id = "c" / client_secret = "hunter2" | client_secret: found something else, expected $argon2id$..., $2b$... of
            scopes = ["Mail.Sent"] | (did you mean "Mail.Send"?)
            scopes = "Mail.Send" | scopes: found "Mail.Send", expected a list
            acts_for = ["bob@elsewhere.test"] | expected an address in one of mailboxes.domains
            acts_for = ["b*@example.test"] | "*@DOMAIN" for all of a domain
            act_for = [] | (did you mean "acts_for"?)
            """
        ),
        ('scopes = ["Mail.send"]', 'scopes[0]: found "Mail.send", expected one of Mail.Read, '),
        (
            f"{ONE_CLIENT}[[account]]\naddress = 'b@example.test'\n{ONE_CLIENT.lower()}",
            "account[1].client_id: found a client id, expected one of its own",
        ),
    ],
)
def test_faults_of_clients(tmp_path, lines, expected):
    told = faults(tmp_path, AN_ACCOUNT + lines.replace(" / ", "\n"))
    assert expected in told
    assert "hunter2" not in told


TWIN = ("example.test", OwnDomain("twin.test", alias_of="example.test"))


async def test_an_address_of_a_twin_domain_is_that_of_the_same_name_for_login_and_from(tmp_path):
    text = TWO + '[[account]]\naddress = "carol@example.test"\nsend_as = ["*@example.test"]\n'
    accounts = load(tmp_path, text, domains=TWIN)
    bob = accounts.by_address("Bob+tag@twin.test")
    assert bob is not None
    assert bob.address == "bob@example.test"
    assert await accounts.by_password("bob@twin.test", "bob", client="") == bob
    assert bob.may_send_as("bob@TWIN.test")
    assert not bob.may_send_as("alice@twin.test")
    assert accounts.by_address("info@twin.test") == accounts.by_address("alice@example.test")
    carol = accounts.by_address("carol@twin.test")
    assert carol is not None
    assert carol.may_send_as("alice@twin.test")


async def test_who_has_logged_in_before_a_reload_does_not_wait_for_neighbours_after_it(tmp_path):
    accounts = load(tmp_path, TWO)
    assert await accounts.by_password("bob@example.test", "bob", client="192.0.2.1")
    accounts.use(accounts.tables, dovecot_auth="")
    for number in range(FREE_FAILURES_OF_CLIENT):
        assert not await accounts.by_password(f"{number}@x.test", "guess", client="192.0.2.1")
    assert await accounts.by_password("bob@example.test", "bob", client="192.0.2.1")
    accounts.close()


async def test_what_a_guesser_calls_itself_is_remembered_shortened(tmp_path):
    accounts = load(tmp_path, TWO)
    assert await accounts.by_password("x" * 9000, "guess", client="192.0.2.1") is None
    assert await accounts.by_client_secret("x" * 9000, "guess", client="192.0.2.1") is None
    lengths = [len(name) for name, _ in accounts._checker._of_pairs._entries]
    assert (len(lengths), max(lengths) < 330) == (2, True)
    accounts.close()


def test_plain_secrets_are_warned_of(tmp_path):
    warnings = "\n".join(load(tmp_path, TWO).tables.warnings)
    assert "accounts.toml:13: account[1].password" in warnings
    assert "accounts.toml:14: account[1].token" in warnings
    assert "account[0]" not in warnings


async def test_the_first_delay_of_an_account_is_logged_once(tmp_path):
    accounts = load(tmp_path, TWO + CLIENT, domains=("example.test", "shared.test"))
    with capture_logs() as lines:
        for number in range(FREE_FAILURES * 4):
            client = f"192.0.2.{number % 4}"
            assert not await accounts.by_password("alice@example.test", "wrong", client=client)
            assert not await accounts.by_password("nobody@example.test", "wrong", client=client)
            assert not await accounts.by_client_secret(CLIENT_ID, "wrong", client=client)
    accounts.close()
    assert [
        (one["event"], one.get("user"), one.get("client_id"), one["client"]) for one in lines
    ] == [
        ("logins delayed", "alice@example.test", None, "192.0.2.0"),
        ("logins delayed", None, CLIENT_ID.lower(), "192.0.2.0"),
    ]


@each_row("domain", [TWIN[1], OwnDomain("twin.test", "any")])
def test_no_account_has_an_address_where_mail_is_passed_on(tmp_path, domain):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, '[[account]]\naddress = "x@twin.test"\n', domains=[TWIN[0], domain])
    assert "or of a [[domain]] with accounts" in str(caught.value)
