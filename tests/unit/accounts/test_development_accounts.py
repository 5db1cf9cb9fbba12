"""The accounts of `relay dev`: which token, login and client gives which account."""

import base64
import json

import pytest

from relay.accounts.account import Account, AccountDirectory
from relay.accounts.development import (
    ACCOUNTS_MAX,
    NAMES,
    TOKEN_LENGTH_MAX,
    DevelopmentAccounts,
    local_part_for,
)

BOB = Account("bob@example.test")


def jwt(header: object = None, **claims: object) -> str:
    parts = ({"alg": "RS256", "typ": "JWT"} if header is None else header, claims)
    encoded = (base64.urlsafe_b64encode(json.dumps(one).encode()).decode() for one in parts)
    return ".".join((*(one.rstrip("=") for one in encoded), "c2ln"))


async def test_a_token_or_login_makes_an_account_but_mail_does_not():
    accounts: AccountDirectory = DevelopmentAccounts()
    assert accounts.by_address("carol@example.test") is None
    assert accounts.by_token("carol").address == "carol@example.test"
    assert accounts.by_address("Carol+x@example.test").address == "carol@example.test"
    dave = await accounts.by_password("dave@example.test", "any", client="")
    assert dave.address == "dave@example.test"
    assert accounts.by_token("alice@EXAMPLE.test") == accounts.by_address("alice@example.test")


@pytest.mark.parametrize("password", ["alice", "Alice@example.test"])
async def test_the_password_of_alice_is_her_name(password):
    accounts = DevelopmentAccounts()
    assert await accounts.by_password("Alice", password) == accounts.by_address(
        "alice@example.test"
    )
    assert await accounts.by_password("Alice@example.test", "wrong") is None


@pytest.mark.parametrize(
    ("name", "local_part"),
    [
        ("carol", "carol"),
        (" Carol@Example.test", "carol"),
        ("megan@contoso.test", "megan.contoso.test"),
        ("guest_contoso.test#EXT#", "guest_contoso.test#ext#"),
        ("3F2504E0-4F89-11D3-9A0C-0305E82C3301", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"),
        ("a b", "zbuhucfklv"),
        ("../x", None),
        ("x" * 65, None),
        (".a", None),
        ("x" * TOKEN_LENGTH_MAX, None),
        ("\udcff", None),
        ("", ""),
        ("@example.test", ""),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_what_is_no_local_part_becomes_a_short_hash(name, local_part):
    found = local_part_for(name)
    if local_part is None:
        assert len(found) == 10
        assert found.isalnum()
    else:
        assert found == local_part
    account = DevelopmentAccounts().by_token(name)
    assert (account and account.address) == (f"{found}@example.test" if found else None)


def test_an_account_may_send_from_the_address_of_another_domain_that_names_it():
    accounts = DevelopmentAccounts()
    megan = accounts.by_token("Megan@contoso.test")
    assert megan.may_send_as("megan@contoso.test")
    assert not megan.may_send_as("alice@contoso.test")
    assert not megan.may_send_as("alice@example.test")
    assert accounts.by_token("carol@example.test").send_as == ()


def test_a_longer_token_is_not_accepted():
    assert DevelopmentAccounts().by_token("x" * (TOKEN_LENGTH_MAX + 1)) is None


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"upn": "megan", "preferred_username": "p", "appid": "a"}, "megan"),
        ({"preferred_username": "pat@example.test", "appid": "a"}, "pat"),
        ({"upn": 7, "preferred_username": "", "appid": "App-1"}, "app-1"),
        ({"azp": "app-2"}, "app-2"),
        ({"sub": "s"}, "s"),
    ],
)
def test_a_jwt_names_the_account_by_its_claims(claims, name):
    account = DevelopmentAccounts().by_token(jwt(**claims))
    assert account.address == f"{name}@example.test"


def test_a_jwt_without_such_claims_gets_a_hash():
    account = DevelopmentAccounts().by_token(jwt(aud="x" * 64))
    assert len(account.address.partition("@")[0]) == 10


@pytest.mark.parametrize(
    "token", ["a.b.c", jwt({}, upn="x"), jwt([], upn="x"), jwt(upn="x").replace(".", "._", 1)]
)
def test_what_only_looks_like_a_jwt_is_a_name(token):
    assert DevelopmentAccounts().by_token(token).address != "x@example.test"


async def test_a_client_may_open_all_mailboxes_and_a_user_its_own():
    accounts: AccountDirectory = DevelopmentAccounts()
    assert not accounts.by_token(jwt(upn="megan", appid="app")).may_open(BOB)
    assert not accounts.by_token("app").may_open(BOB)
    assert accounts.by_token(jwt(appid="app")).may_open(BOB)
    client = await accounts.by_client_secret("app", "any", client="")
    assert client.account.address == "app@example.test"
    assert client.account.may_open(BOB)
    assert await accounts.by_client_secret("app", "", client="") is None


def test_an_application_makes_the_mailboxes_that_it_opens():
    accounts: AccountDirectory = DevelopmentAccounts()
    application = accounts.by_token(jwt(appid="app"))
    for address, name in (
        ("carol+x@example.test", "carol"),
        ("carol@example.test", "carol"),
        ("sender@contoso.test", "sender.contoso.test"),
    ):
        opened = accounts.opened(address, application)
        assert opened.address == f"{name}@example.test"
    assert accounts.opened("sender@contoso.test", application).may_send_as("sender@contoso.test")


def test_a_user_opens_its_own_mailbox_by_each_of_its_addresses_and_makes_none():
    accounts: AccountDirectory = DevelopmentAccounts()
    megan = accounts.by_token("megan@contoso.test")
    assert accounts.opened("megan@contoso.test", megan) == megan
    assert accounts.opened("Megan.Contoso.Test@example.test", megan) == megan
    assert accounts.opened("bob@example.test", megan) is None
    assert accounts.opened("nobody@example.test", megan) is None
    assert accounts.by_address("nobody@example.test") is None


def test_the_number_of_accounts_is_bounded():
    accounts = DevelopmentAccounts()
    made = [accounts.by_token(f"user{number}") for number in range(ACCOUNTS_MAX + 5)]
    assert made.count(None) == 5 + len(NAMES)
    assert accounts.by_token("bob") is not None
    assert accounts.by_client_id("one-more") is None
