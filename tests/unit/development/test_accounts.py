"""The accounts of a development relay: which token, login and client gives which account."""

import asyncio
import base64
import json
import re
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from relay.base.accounts.account import (
    LOGIN_OCTETS_MAX,
    Account,
    AccountDirectory,
    LoginDelayedError,
    LoginRefusedError,
    Role,
)
from relay.base.accounts.passwords import FREE_FAILURES_OF_CLIENT
from relay.base.message.address import parse_mailbox
from relay.development.accounts import ACCOUNTS_MAX, TOKEN_LENGTH_MAX, DevelopmentAccounts
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ALICE, BOB = Account("alice@example.test"), Account("bob@example.test")
CAPTURED = "ann+tag@gmail.com"


@dataclass
class Mailboxes:
    """The mailboxes that exist."""

    addresses: set[str] = field(default_factory=lambda: {CAPTURED})

    def has(self, address: str) -> bool:
        return address in self.addresses

    def some(self, limit: int) -> list[str]:
        return sorted(self.addresses)[:limit]


@pytest.fixture
def accounts() -> AccountDirectory:
    return DevelopmentAccounts(Mailboxes())


def jwt(header: object = None, **claims: object) -> str:
    parts = ({"alg": "RS256", "typ": "JWT"} if header is None else header, claims)
    encoded = (base64.urlsafe_b64encode(json.dumps(one).encode()).decode() for one in parts)
    return ".".join((*(one.rstrip("=") for one in encoded), "c2ln"))


# -- names
@each_row(
    "name, address",
    [
        ("carol", "carol@example.test"),
        (" Carol@Example.test", "carol@example.test"),
        ("carol+x@example.test", "carol@example.test"),
        ("carol+x", "carol@example.test"),
        ("+x@example.test", "+x@example.test"),
        ('"a+b c"@example.test', '"a+b c"@example.test'),
        ("Megan@Contoso.test", "megan@contoso.test"),
        ("megan+x@contoso.test", "megan+x@contoso.test"),
        ("megan@münchen.test", "megan@xn--mnchen-3ya.test"),
        ("jörg@example.test", "jörg@example.test"),
        ('"a b"@contoso.test', '"a b"@contoso.test'),
        ("guest_contoso.test#EXT#", "guest_contoso.test#ext#@example.test"),
        (
            "3F2504E0-4F89-11D3-9A0C-0305E82C3301",
            "3f2504e0-4f89-11d3-9a0c-0305e82c3301@example.test",
        ),
        ("a b", "zbuhucfklv@example.test"),
        ("../x", None),
        ("x" * 65, None),
        (".a", None),
        ("a@b@c", None),
        ("a@-", None),
        ("x" * TOKEN_LENGTH_MAX, None),
        ("\udcff", None),
        ("\udcff@contoso.test", None),
        ("", ""),
        ("@example.test", ""),
        ("@contoso.test", ""),
    ],
)
def test_an_account_is_named_by_its_address(accounts, name, address):
    account = accounts.by_token(name)
    if address is None:  # what is no local part becomes a short hash
        local_part, _, domain = account.address.partition("@")
        assert (len(local_part), local_part.isalnum(), domain) == (10, True, "example.test")
    else:
        assert (account.address if account else "") == address


async def test_tokens_logins_and_clients_name_the_same_account(accounts):
    megan = Account("megan@contoso.test")
    assert accounts.by_token("megan@contoso.test") == megan
    assert await accounts.by_password("Megan@contoso.test", "any", client="") == megan
    client = await accounts.by_client_secret("megan@contoso.test", "any", client="")
    assert client.account.address == megan.address
    assert accounts.by_address("MEGAN@contoso.test") == megan


def test_a_longer_token_is_not_accepted(accounts):
    assert accounts.by_token("x" * (TOKEN_LENGTH_MAX + 1)) is None


@each_row(
    "claims, name",
    [
        ({"upn": "megan", "preferred_username": "p", "appid": "a"}, "megan"),
        ({"preferred_username": "pat@example.test", "appid": "a"}, "pat"),
        ({"upn": 7, "preferred_username": "", "appid": "App-1"}, "app-1"),
        ({"azp": "app-2"}, "app-2"),
        ({"sub": "s"}, "s"),
    ],
)
def test_a_jwt_names_the_account_by_its_claims(accounts, claims, name):
    assert accounts.by_token(jwt(**claims)).address == f"{name}@example.test"


@each_row(
    "token", ["a.b.c", jwt({}, upn="x"), jwt([], upn="x"), jwt(upn="x").replace(".", "._", 1)]
)
def test_what_only_looks_like_a_jwt_is_a_name(accounts, token):
    assert accounts.by_token(token).address != "x@example.test"


# -- logins by SMTP
@each_row(
    "user, address",
    [
        ("apikey", "apikey@example.test"),
        (" Carol@Example.test ", "carol@example.test"),
        ("carol+x", "carol@example.test"),
        ("megan+x@contoso.test", "megan+x@contoso.test"),
        ("CORP\\Joe", "corp_joe@example.test"),
        ("AKIA/key=", "akia_key=@example.test"),
        ("a b\0\r\nc", "a_b___c@example.test"),
        (".a..b.", "_.a._.b._@example.test"),
        ("a@b@c", "a_b_c@example.test"),
        ("@example.test", "_example.test@example.test"),
        ("\udcff", "_@example.test"),
        ("jörg", "jörg@example.test"),
        ("x" * 64, f"{'x' * 64}@example.test"),
    ],
)
async def test_a_login_that_is_no_address_is_a_local_part(accounts, user, address):
    for login in (accounts.by_user_name, accounts.by_smtp_login):
        assert (await login(user, "any", client="")).address == address


@each_row("letter", ["x", "ö", "\U0001f600"])
def test_the_end_of_a_long_login_is_a_hash(accounts, letter):
    octets = len(letter.encode())
    first, second = (
        accounts.login_address(letter * (LOGIN_OCTETS_MAX // octets - one)) for one in (0, 1)
    )
    assert first != second
    assert parse_mailbox(first, smtputf8=True) == first
    assert re.fullmatch(r".{13,53}-[a-z2-7]{10}@example\.test", first)


@each_row(
    "user, found",
    [("", "nothing"), (" ", "nothing"), ("x" * 321, "321 octets"), ("ö" * 5000, "10000 octets")],
)
async def test_what_is_no_user_name_is_refused(accounts, user, found):
    for login in (accounts.by_user_name, accounts.by_smtp_login):
        with pytest.raises(LoginRefusedError, match=f"^Found {found} as the user name, expected 1"):
            await login(user, "any", client="")


async def test_a_login_with_any_password_gives_no_role():
    accounts = DevelopmentAccounts(token="T")
    assert (await accounts.by_user_name("operator", "T", client="")).role is Role.USER
    assert (await accounts.by_smtp_login("operator", "T", client="")).role is Role.OPERATE
    assert await accounts.by_smtp_login("operator", "operator", client="") is None


async def test_with_strict_users_a_login_makes_no_account():
    accounts = DevelopmentAccounts(Mailboxes({"dora@example.test"}), strict=True)
    for user in ("alice", "bob@example.test", "dora+x"):
        assert await accounts.by_user_name(user, "any", client="")
    for user in ("carol", "carol@contoso.test"):
        with pytest.raises(
            LoginRefusedError, match=r"^carol@[a-z]+\.test is no account, and --str"
        ):
            await accounts.by_user_name(user, "any", client="")
    accounts.by_token("carol")
    assert await accounts.by_user_name("carol", "any", client="")


# -- the mailboxes that may be opened
async def test_a_client_opens_all_mailboxes_and_a_user_its_own(accounts):
    user, application = accounts.by_token(jwt(upn="megan", appid="app")), jwt(appid="app")
    assert not user.may_open(BOB)
    assert accounts.opened("bob@example.test", user) is None
    assert accounts.by_token(application).may_open(BOB)
    client = await accounts.by_client_secret("app", "any", client="")
    assert client.account.address == "app@example.test"
    assert accounts.opened("bob@example.test", client.account) == BOB
    assert await accounts.by_client_secret("app", "", client="") is None


def test_with_strict_users_a_local_account_was_used_or_has_a_mailbox():
    accounts = DevelopmentAccounts(Mailboxes({"dora@example.test"}), strict=True)
    assert accounts.by_address("new@example.test") is None
    assert accounts.by_address("Dora+x@example.test").address == "dora@example.test"
    assert accounts.by_address("bob+x@example.test") == BOB
    accounts.by_token("new")
    assert accounts.by_address("new@example.test").address == "new@example.test"
    assert accounts.by_address("anybody@gmail.com").address == "anybody@gmail.com"


def test_few_accounts_are_remembered_and_those_without_mail_go_first():
    accounts = DevelopmentAccounts(Mailboxes({"user1@example.test"}), strict=True)
    for number in range(ACCOUNTS_MAX + 3):
        assert accounts.by_token(f"user{number}") is not None
    known = [accounts.by_address(f"user{number}@example.test") for number in range(4)]
    assert [one is not None for one in known] == [False, True, False, True]
    assert accounts.by_address("bob@example.test") == BOB


# -- the operator, and a token for everything
def test_the_operators_token_opens_every_mailbox():
    accounts = DevelopmentAccounts(Mailboxes(), operator_token="secret")
    operator = accounts.by_token("secret")
    assert operator.role is Role.OPERATE
    assert accounts.opened("bob@example.test", operator) == BOB
    assert accounts.by_token("operator").role is Role.USER


async def test_clients_that_guess_the_token_are_delayed():
    clock = ManualClock()
    accounts = DevelopmentAccounts(token="T", clock=clock)
    home, other = "192.0.2.1", "192.0.2.2"
    ways = [
        lambda given, client: asyncio.sleep(0, accounts.by_token(given, client=client)),
        lambda given, client: accounts.by_password("alice", given, client=client),
        lambda given, client: accounts.by_client_secret("app", given, client=client),
    ]
    for number, way in zip(range(FREE_FAILURES_OF_CLIENT), cycle(ways)):
        assert await way(f"guess {number}", home) is None
    for way in ways:
        with pytest.raises(LoginDelayedError):
            await way("T", home)
        assert await way("T", other)
    clock.advance(1.1)
    assert accounts.by_token("another guess", client=home) is None
    clock.advance(1.1)
    with pytest.raises(LoginDelayedError):
        accounts.by_token("T", client=home)
    clock.advance(1)
    assert accounts.by_token("T", client=home)
    assert accounts.by_token("wrong", client=home) is None
    assert accounts.by_token("T", client=home)


@each_row("old", [["old"], ["old", "older"], ["a", "b", "c", "d", "e"]])
def test_programs_with_old_tokens_do_not_delay_their_neighbours(old):
    accounts = DevelopmentAccounts(token="T")
    for token in FREE_FAILURES_OF_CLIENT * 3 * old:
        assert accounts.by_token(token, client="192.0.2.1") is None
    assert accounts.by_token("T", client="192.0.2.1")


def test_clients_of_a_unix_socket_do_not_delay_each_other():
    accounts = DevelopmentAccounts(token="T")
    for number in range(FREE_FAILURES_OF_CLIENT * 3):
        assert accounts.by_token(f"guess {number}", client="") is None
    assert accounts.by_token("T", client="")


def test_tokens_of_a_client_end_with_the_token():
    clients = [DevelopmentAccounts(token=token).by_client_id("app") for token in ("T", "U")]
    assert clients[0].secret_digest != clients[1].secret_digest
