"""Access tokens: what they say, when they end, and where their key is kept."""

import base64
import json
import os
import stat
from dataclasses import replace

import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey
from msgspec import structs

from relay.base.accounts.account import Account, RegisteredClient, Scope
from relay.base.settings.document import SettingsError
from relay.front_door.sign_in import access_tokens
from relay.front_door.sign_in.access_tokens import (
    LIFETIME_S,
    TOKEN_KEY_FILE,
    TOKEN_LENGTH_MAX,
    AccessTokens,
    InvalidTokenError,
    granted_scopes,
    token_key,
)
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ACCOUNT = Account("app@example.test", scopes=frozenset([Scope.USER_READ, Scope.MAIL_SEND]))
CLIENT = RegisteredClient("Client-1", ACCOUNT, b"digest of the secret")
KEY = ECKey.generate_key("P-256")
ISSUER = "https://relay.example.test/contoso/v2.0"


USER = Account("alice@example.test", scopes=frozenset([Scope.MAIL_READ, Scope.MAIL_SEND]))


class Clients:
    """A directory of one client, which may open the mailbox of one user."""

    def __init__(self, client: RegisteredClient | None = CLIENT) -> None:
        self.client = client

    def by_client_id(self, client_id: str) -> RegisteredClient | None:
        found = self.client
        return found if found and found.client_id.lower() == client_id.lower() else None

    def by_token(self, token: str, *, client: str = "") -> Account | None:
        return None

    def opened(self, address: str, caller: Account) -> Account | None:
        return USER if address == USER.address and caller.may_open(USER) else None


def issued(tokens: AccessTokens) -> str:
    return tokens.issue(
        CLIENT, issuer=ISSUER, tenant="contoso", audience="https://graph.test", token_id="t1"
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tokens(clock: ManualClock) -> AccessTokens:
    return AccessTokens(lambda: KEY, clock)


def test_the_claims(tokens, clock):
    assert "d" not in tokens.public_keys()["keys"][0]  # the private part
    keys = KeySet.import_key_set(tokens.public_keys())
    found = jwt.decode(issued(tokens), keys, algorithms=["ES256"])
    now_s = clock.time_us() // 1_000_000
    assert found.header == {"alg": "ES256", "kid": KEY.thumbprint(), "typ": "JWT"}
    assert found.claims["aud"] == "https://graph.test"
    assert found.claims["iss"] == ISSUER
    assert found.claims["iat"] == found.claims["nbf"] == now_s
    assert found.claims["exp"] == now_s + LIFETIME_S
    assert found.claims["appid"] == found.claims["azp"] == "Client-1"
    assert found.claims["idtyp"] == "app"
    assert found.claims["roles"] == ["Mail.Send", "User.Read"]
    assert found.claims["tid"] == "contoso"
    assert found.claims["oid"] == found.claims["sub"]
    assert CLIENT.secret_digest.hex() not in json.dumps(found.claims)


def test_a_token_has_its_client(tokens, clock):
    token = issued(tokens)
    assert tokens.client_of(token, Clients()) is CLIENT
    assert tokens.client_of(token, Clients()) is CLIENT  # now its signature is not verified again
    assert AccessTokens(lambda: KEY, clock).client_of(token, Clients()) is CLIENT  # a new start


@pytest.mark.parametrize("jumped_s", [0, 7200, -7200])
def test_a_token_ends_after_its_time_although_the_wall_clock_jumps(tokens, clock, jumped_s):
    token = issued(tokens)
    clock.jumped_us = jumped_s * 1_000_000
    clock.advance(LIFETIME_S - 1)
    assert tokens.client_of(token, Clients()) is CLIENT
    clock.advance(1)
    with pytest.raises(InvalidTokenError, match="expired"):
        tokens.client_of(token, Clients())


@pytest.mark.parametrize(
    "client", [None, structs.replace(CLIENT, secret_digest=b"of another secret")]
)
def test_a_token_ends_with_its_client_and_with_its_secret(tokens, client):
    token, clients = issued(tokens), Clients()
    assert tokens.client_of(token, clients) is CLIENT
    clients.client = client
    with pytest.raises(InvalidTokenError, match="removed"):
        tokens.client_of(token, clients)


def test_scopes_are_those_of_the_account_and_not_of_the_token(tokens):
    now = structs.replace(CLIENT, account=replace(ACCOUNT, scopes=frozenset()))
    assert tokens.client_of(issued(tokens), Clients(now)).account.scopes == frozenset()


ACTING = structs.replace(CLIENT, account=replace(ACCOUNT, acts_for=("*@example.test",)))


def issued_for_user(tokens: AccessTokens, *names: str) -> str:
    return tokens.issue(
        ACTING,
        issuer=ISSUER,
        tenant="contoso",
        audience="aud",
        token_id="t1",
        user=USER,
        granted=granted_scopes(names, USER),
    )


def test_a_token_of_a_user_is_one_of_the_users_account(tokens):
    token, clients = issued_for_user(tokens), Clients(ACTING)
    claims = jwt.decode(token, KEY, algorithms=["ES256"]).claims
    assert claims["idtyp"] == "user"
    assert claims["upn"] == USER.address
    assert claims["scp"] == "Mail.Read Mail.Send"
    assert "roles" not in claims
    assert tokens.account_of(token, clients, client="") is USER
    clients.client = CLIENT
    with pytest.raises(InvalidTokenError, match="may not open the mailbox"):
        tokens.account_of(token, clients, client="")


@each_row(
    "asked, scp",
    [
        ("", "Mail.Read Mail.Send"),
        ("openid offline_access", "Mail.Read Mail.Send openid"),
        (".default profile", "Mail.Read Mail.Send profile"),
        ("mail.read", "Mail.Read"),
        ("Mail.Send.Shared Calendars.Read", "Calendars.Read Mail.Send.Shared"),
        ("Mail.ReadBasic", "Mail.ReadBasic"),
        ("Mail.ReadWrite SMTP.Send", ""),
    ],
)
def test_a_token_has_the_scopes_that_were_granted(tokens, asked, scp):
    token = issued_for_user(tokens, *asked.split())
    assert jwt.decode(token, KEY, algorithms=["ES256"]).claims["scp"] == scp
    found = tokens.account_of(token, Clients(ACTING), client="")
    assert found.address == USER.address
    assert sorted(found.scopes) == [
        f"Mail.{one}" for one in ("Read", "Send") if f"Mail.{one}" in scp
    ]


def test_what_is_sealed_is_good_for_one_purpose_and_one_client(tokens, clock):
    claims = {"user": "alice"}
    sealed = tokens.seal(CLIENT, claims, kind="refresh", lifetime_s=60)
    assert tokens.unseal(CLIENT, sealed, kind="refresh")["user"] == "alice"
    assert tokens.unseal(CLIENT, sealed, kind="code") is None
    assert tokens.unseal(CLIENT, issued(tokens), kind="refresh") is None
    changed = structs.replace(CLIENT, secret_digest=b"of another secret")
    for other in (structs.replace(CLIENT, client_id="other"), changed):
        assert tokens.unseal(other, sealed, kind="refresh") is None
    for token in (sealed, tokens.sign({"aud": "Client-1"})):
        assert tokens.client_of(token, Clients()) is None
    stranger = AccessTokens(lambda: ECKey.generate_key("P-256"), clock)
    assert stranger.unseal(CLIENT, sealed, kind="refresh") is None
    clock.advance(60)
    with pytest.raises(InvalidTokenError, match="expired"):
        tokens.unseal(CLIENT, sealed, kind="refresh")


def forged(tokens: AccessTokens) -> dict[str, str]:
    claims = jwt.decode(issued(tokens), KEY, algorithms=["ES256"]).claims
    header, body, signature = issued(tokens).split(".")
    other = base64.urlsafe_b64encode(json.dumps({**claims, "appid": "other"}).encode()).decode()
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    point = json.dumps(KEY.as_dict(private=False)).encode()
    return {
        "changed": f"{header}.{other.rstrip('=')}.{signature}",
        "unsigned": f"{unsigned}.{body}.",
        "another key": jwt.encode({"alg": "ES256"}, claims, ECKey.generate_key("P-256")),
        "another algorithm": jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(point)),
        "no signature": f"{header}.{body}.",
        "cut": f"{header}.{body}.{signature[:-4]}",
        "too long": f"{header}.{body}.{signature}{'A' * TOKEN_LENGTH_MAX}",
        "two parts": f"{header}.{body}",
    }


@each_row("name", forged(AccessTokens(lambda: KEY, ManualClock())))
def test_a_forged_token_has_no_client(tokens, name):
    assert tokens.client_of(forged(tokens)[name], Clients()) is None


def test_the_number_of_remembered_tokens_is_bounded(monkeypatch):
    monkeypatch.setattr(access_tokens, "_REMEMBERED_MAX", 3)
    tokens = AccessTokens(lambda: KEY, ManualClock())
    for _ in range(5):
        tokens.client_of(issued(tokens), Clients())
    assert len(tokens._verified) == 3


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path):
    made = token_key(tmp_path)
    assert token_key(tmp_path).as_dict(private=True) == made.as_dict(private=True)
    (file,) = tmp_path.iterdir()
    assert file.name == TOKEN_KEY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        token_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_others_can_read_is_a_fault(tmp_path):
    token_key(tmp_path)
    (tmp_path / TOKEN_KEY_FILE).chmod(0o660)  # as a volume's group gets it
    token_key(tmp_path)
    (tmp_path / TOKEN_KEY_FILE).chmod(0o604)
    with pytest.raises(SettingsError, match=r"found -rw----r--, .*chmod o-rwx"):
        token_key(tmp_path)


@each_row(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "d": 1}',
        msgspec.json.encode(KEY.as_dict(private=False)),
        msgspec.json.encode(ECKey.generate_key("P-384").as_dict(private=True)),
        msgspec.json.encode(OctKey.generate_key().as_dict(private=True)),
    ],
)
def test_what_is_no_key_is_a_fault(tmp_path, content):
    file = tmp_path / TOKEN_KEY_FILE
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="expected a private JWK for ES256"):
        token_key(tmp_path)
    assert file.read_bytes() == content


@each_row("header", [["alg"], {"alg": "ES256", "crit": 5}, {"alg": "ES256", "crit": [{}]}])
def test_a_malformed_header_has_no_client(tokens, header):
    """joserfc raises a TypeError for some of them."""
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
    assert tokens.client_of(f"{encoded}.e30.AAAA", Clients()) is None
