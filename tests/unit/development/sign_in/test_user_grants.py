"""The grants with which users sign in to a development relay, but for /authorize."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from relay.development import user_grants
from relay.development.user_grants import DEVICE_LIFETIME_S
from relay.front_door.sign_in.access_tokens import LIFETIME_S, InvalidTokenError
from tests.support.tables import each_row
from tests.support.user_sign_in import (
    AUTHORIZE,
    BASE,
    DEVICE,
    GRAPH,
    PAGE,
    REDIRECT,
    THE_TOKEN,
    Development,
    failed,
)

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
ON_BEHALF = "urn:ietf:params:oauth:grant-type:jwt-bearer"


async def test_a_password(dev):
    found = await dev.tokens_by("password", username="alice@example.test", password="alice")
    assert found["token_type"] == "Bearer"
    assert found["expires_in"] == LIFETIME_S - 1
    assert found["scope"] == f"openid profile {GRAPH}/Mail.Send"
    claims = dev.claims(found["access_token"])
    assert claims["aud"] == GRAPH
    assert (claims["idtyp"], claims["upn"]) == ("user", "alice@example.test")
    assert (claims["appid"], claims["tid"]) == ("app", "contoso")
    assert claims["app_displayname"] == "app"
    assert "Mail.Send" in claims["scp"].split()
    identity = dev.claims(found["id_token"])
    assert (identity["aud"], identity["iss"]) == ("app", f"{BASE}/contoso/v2.0")
    assert identity["preferred_username"] == "alice@example.test"
    assert identity["oid"] == claims["oid"]
    assert "client_info" not in found
    assert await dev.mailbox(found) == "alice@example.test"


async def test_a_user_of_any_name_signs_in_and_opens_its_own_mailbox_only(dev):
    found = await dev.tokens_by("password", username="carol", password="any")
    assert await dev.mailbox(found) == "carol@example.test"
    headers = {"authorization": f"Bearer {found['access_token']}"}
    answer = await dev.http.get("/v1.0/users/bob@example.test", headers=headers)
    assert answer.status_code == 403


async def test_without_the_scopes_of_openid_there_is_an_access_token_alone(dev):
    found = await dev.tokens_by("password", username="bob", password="bob", scope="Mail.Send")
    assert set(found) == {"token_type", "expires_in", "ext_expires_in", "access_token", "scope"}
    assert dev.claims(found["access_token"])["aud"] == GRAPH


async def test_a_wrong_password(dev):
    answer = await dev.ask("password", username="alice@example.test", password="wrong")
    failed(answer, "invalid_grant", 50126)


@each_row("missing", ["client_id", "username", "password"])
async def test_what_is_missing_is_named(dev, missing):
    answer = await dev.ask("password", **({"username": "a", "password": "a"} | {missing: ""}))
    assert f"'{missing}'" in failed(answer, "invalid_request", 900144)


async def test_a_refresh_token_is_good_until_it_ends(dev):
    first = await dev.tokens_by("password", username="carol", password="any")
    for _ in range(2):
        dev.clock.advance(LIFETIME_S)
        token = first["refresh_token"]
        found = await dev.tokens_by("refresh_token", refresh_token=token, scope="")
        assert await dev.mailbox(found) == "carol@example.test"
        assert found["scope"] == first["scope"]
    dev.clock.advance(user_grants.REFRESH_LIFETIME_S)
    answer = await dev.ask("refresh_token", refresh_token=first["refresh_token"])
    failed(answer, "invalid_grant", 70008)
    with pytest.raises(InvalidTokenError):
        dev.tokens.account_of(found["access_token"], dev.accounts, client="")


async def test_a_refresh_token_of_another_client_of_another_relay_and_no_refresh_token(dev):
    found = await dev.tokens_by("password", username="alice", password="alice")
    token = found["refresh_token"]
    answer = await dev.ask("refresh_token", refresh_token=token, client_id="other")
    assert "another client than 'other'" in failed(answer, "invalid_grant", 70000)
    stranger = Development()
    async with stranger.http:
        answer = await stranger.ask("refresh_token", refresh_token=token)
        failed(answer, "invalid_grant", 70000)
    header, body, signature = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"refresh_token"}').decode().rstrip("=")
    wrong = (
        found["access_token"],
        found["id_token"],
        f"{header}.{body}.{'AB'[signature[0] == 'A']}{signature[1:]}",
        f"{none}.{body}.",
        "x",
        "é.ü.ö",
        "x" * 12_000,
    )
    for one in wrong:
        failed(await dev.ask("refresh_token", refresh_token=one), "invalid_grant", 70000)


@pytest.mark.parametrize("grant", [DEVICE_GRANT, "device_code"])
async def test_a_device_code(dev, grant):
    device = await dev.device()
    assert device["verification_uri"] == BASE + PAGE
    assert device["user_code"] in device["user_code"]
    assert "nothing to do" in device["message"]
    assert "nothing to do" in (await dev.http.get(PAGE)).text
    found = await dev.tokens_by(grant, device_code=device["device_code"])
    assert await dev.mailbox(found) == "alice@example.test"
    assert found["refresh_token"]
    answer = await dev.ask(DEVICE_GRANT, device_code=device["device_code"])
    failed(answer, "invalid_grant", 54005)


async def test_a_device_code_that_ended_or_is_none(dev):
    device = await dev.device()
    answer = await dev.ask(DEVICE_GRANT, device_code=device["device_code"], client_id="other")
    failed(answer, "invalid_grant", 70000)
    failed(await dev.ask(DEVICE_GRANT, device_code=await dev.code()), "invalid_grant", 70000)
    dev.clock.advance(DEVICE_LIFETIME_S)
    answer = await dev.ask(DEVICE_GRANT, device_code=device["device_code"])
    failed(answer, "expired_token", 70020)


async def test_a_token_opens_what_its_scopes_name(dev):
    async def may(found: dict[str, Any]) -> list[int]:
        headers = {"authorization": f"Bearer {found['access_token']}"}
        paths = ("me", "me/messages", "me/mailboxSettings")
        return [
            (await dev.http.get(f"/v1.0/{path}", headers=headers)).status_code for path in paths
        ]

    form = {"username": "carol", "password": "any"}
    first = await dev.tokens_by("password", **form, scope="mail.readbasic offline_access")
    assert dev.claims(first["access_token"])["scp"] == "User.Read mail.readbasic"
    assert await may(first) == [200, 200, 403]
    token = {"refresh_token": first["refresh_token"]}
    more = await dev.tokens_by("refresh_token", **token, scope=f"{GRAPH}/MailboxSettings.Read")
    assert dev.claims(more["access_token"])["aud"] == GRAPH
    assert await may(more) == [200, 200, 200]  # as Entra, with what was granted before
    assert await may(await dev.tokens_by("password", **form, scope="openid")) == [200, 200, 200]

    none = await dev.tokens_by("password", **form, scope="api://service/access")
    assert await may(none) == [200, 403, 403]


async def test_the_paths_of_version_1_and_the_grant_of_a_service_are_gone(dev):
    for path in ("token", "authorize", "devicecode"):
        answer = await dev.ask("client_credentials", f"/common/oauth2/{path}", client_secret="x")
        assert answer.status_code == 404
    answer = await dev.ask(ON_BEHALF, client_secret="x", requested_token_use="on_behalf_of")
    assert "authorization_code" in failed(answer, "unsupported_grant_type", 70003)


async def test_any_assertion_is_a_secret_of_its_client(dev):
    form = {"client_assertion": "a.b.c", "scope": f"{GRAPH}/.default"}
    form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    found = await dev.tokens_by("client_credentials", **form)
    assert await dev.mailbox(found, "users/app@example.test") == "app@example.test"


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@each_row("path", [AUTHORIZE, DEVICE, PAGE])
async def test_another_method(dev, method, path):
    query = {"client_id": "app", "redirect_uri": REDIRECT, "response_type": "code"}
    answer = await dev.http.request(method, path, params=query)
    failed(answer, "invalid_request", 900561, status=405)


async def test_with_a_token_a_password_is_that_token(guarded):
    answer = await guarded.ask("password", username="carol", password="any")
    failed(answer, "invalid_grant", 50126)
    found = await guarded.tokens_by("password", username="carol", password=THE_TOKEN)
    assert await guarded.mailbox(found) == "carol@example.test"
    found = await guarded.tokens_by("refresh_token", refresh_token=found["refresh_token"])
    assert await guarded.mailbox(found) == "carol@example.test"


async def test_with_a_token_no_device_signs_in(guarded):
    answer = await guarded.http.post(DEVICE, data={"client_id": "app", "scope": "openid"})
    failed(answer, "invalid_client", 7000218, status=401)
    assert "with the token" in answer.json()["error_description"]


async def test_with_a_token_no_secret_and_no_assertion_of_another_text_is_good(guarded):
    for wrong in ({"client_secret": "any"}, {"client_assertion": "a.b.c"}):
        answer = await guarded.ask("client_credentials", scope=f"{GRAPH}/.default", **wrong)
        failed(answer, "invalid_client", 7000215, status=401)
        answer = await guarded.ask("password", username="carol", password=THE_TOKEN, **wrong)
        failed(answer, "invalid_client", 7000215, status=401)
    form = {"client_assertion": THE_TOKEN, "scope": f"{GRAPH}/.default"}
    found = await guarded.tokens_by("client_credentials", **form)
    assert await guarded.mailbox(found, "users/app@example.test")


GUESSES: list[Callable[[Development, str], Any]] = [
    lambda dev, text: dev.ask("password", username="alice", password=text),
    lambda dev, text: dev.authorize({}, "POST", {"approve": "yes", "token": text}),
]


@pytest.mark.parametrize("guess", GUESSES)
async def test_who_guesses_the_token_is_delayed(guarded, guess):
    statuses = [(await guess(guarded, f"guess {one}")).status_code for one in range(12)]
    assert statuses[0] in (400, 403)
    assert statuses[-1] == 429
    answer = await guess(guarded, THE_TOKEN)  # it could be a guess as well
    failed(answer, "temporarily_unavailable", 90055, status=429)
    assert int(answer.headers["retry-after"]) >= 1
