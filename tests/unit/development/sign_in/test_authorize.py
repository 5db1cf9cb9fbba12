"""How a user signs in at /authorize of a development relay: codes, redirects, approval."""

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.development import user_grants
from relay.development.sign_in_pages import require_own_redirect
from relay.development.user_grants import CODE_LIFETIME_S
from relay.front_door.sign_in.token_endpoint import SignInError
from tests.support.tables import each_row
from tests.support.user_sign_in import (
    BASE,
    GRAPH,
    REDIRECT,
    THE_TOKEN,
    VERIFIER,
    failed,
    is_never_framed,
    returned,
)


async def test_a_code(dev):
    answer = await dev.authorize(login_hint="carol@example.test")
    assert answer.headers["location"].startswith(f"{REDIRECT}?code=")
    back = returned(answer)
    assert back["state"] == "a state"
    found = (await dev.redeem(back["code"])).json()
    assert dev.claims(found["id_token"])["nonce"] == "a nonce"
    assert await dev.mailbox(found) == "carol@example.test"
    assert found["refresh_token"]


async def test_a_code_is_good_once(dev):
    code = await dev.code()
    assert (await dev.redeem(code)).status_code == 200
    failed(await dev.redeem(code), "invalid_grant", 54005)


async def test_a_code_is_good_for_a_minute(dev):
    codes = [await dev.code(), await dev.code()]
    dev.clock.advance(CODE_LIFETIME_S - 1)
    assert (await dev.redeem(codes[0])).status_code == 200
    dev.clock.advance(1)
    failed(await dev.redeem(codes[1]), "invalid_grant", 70008)


async def test_a_code_of_an_earlier_start_is_not_good(dev):
    code = await dev.code()
    dev.users._start = "another"
    failed(await dev.redeem(code), "invalid_grant", 70008)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"code_verifier": "w" * 43}, 501481),
        ({"code_verifier": ""}, 501481),
        ({"code_verifier": "é" * 43}, 501481),
        ({"redirect_uri": "http://localhost:4712/"}, 500112),
        ({"client_id": "other"}, 70000),
    ],
)
async def test_a_code_of_another_program(dev, changed, number):
    code = await dev.code()
    failed(await dev.redeem(code, **changed), "invalid_grant", number)
    assert (await dev.redeem(code)).status_code == 200  # by its own program


async def test_proof_keys(dev):
    plain = await dev.code(code_challenge=VERIFIER, code_challenge_method="plain")
    assert (await dev.redeem(plain)).status_code == 200
    without = await dev.code(code_challenge="", code_challenge_method="")
    failed(await dev.redeem(without), "invalid_grant", 501481)
    assert (await dev.redeem(without, code_verifier="")).status_code == 200


async def test_the_table_of_used_codes_is_bounded(dev, monkeypatch):
    monkeypatch.setattr(user_grants, "_USED_MAX", 3)
    for _ in range(3):
        assert (await dev.redeem(await dev.code())).status_code == 200
    code = await dev.code()
    answer = await dev.redeem(code)
    failed(answer, "temporarily_unavailable", 90033, status=503)
    assert answer.headers["retry-after"] == str(CODE_LIFETIME_S)
    dev.clock.advance(CODE_LIFETIME_S)
    assert (await dev.redeem(await dev.code())).status_code == 200


@each_row(
    "redirect",
    [
        *("https://evil.example/", "http://evil.example/", "http://localhost.evil.example/"),
        *("http://localhost@evil.example/", "http://localhost:80@evil.example/"),
        *("http://localhost\\@evil.example/", "http://localhost:1/\r\nx: y", "//localhost/"),
        *("http://127.0.0.1.evil.example/", "http://10.0.0.1/", "http://localhost:1/#x"),
        *("javascript:alert(1)", "msal:x", "msalx://a#b", "msalx://a?b=1", "msalx://a\r\nx: y"),
        *("file:///etc/passwd", "https://localhost.evil.example/"),
        "https://login.microsoftonline.com/common/oauth2/nativeclient",
        *(f"{BASE}/common/oauth2/nativeclient/..", "urn:ietf:wg:oauth:2.0:oob"),
        *("http://localhost:1/?x#y", "http://127.0.0.1\n"),
    ],
)
async def test_a_redirect_to_elsewhere(dev, redirect):
    answer = await dev.authorize(redirect_uri=redirect)
    failed(answer, "invalid_request", 50011)
    assert "location" not in answer.headers


@each_row(
    "redirect",
    [
        "http://localhost",
        "http://LOCALHOST:1/a%20b?x=1",
        "http://127.0.0.1:65535/",
        "http://[::1]:1/",
        "https://localhost",
        "https://localhost:44300/signin-oidc",
        f"{BASE}/common/oauth2/nativeclient",
        "msal04b07795-8ddb://auth",
        "msauth://x".replace("msauth", "msalx"),
    ],
)
async def test_a_redirect_to_this_machine(dev, redirect):
    answer = await dev.authorize(redirect_uri=redirect)
    assert answer.headers["location"].startswith(redirect)
    answer = await dev.redeem(returned(answer)["code"], redirect_uri=redirect)
    assert answer.status_code == 200


@given(st.text(st.sampled_from("htp:/locals127.0[]@\\#?% \n.evil-exampmsal"), max_size=60))
def test_no_redirect_leaves_the_machine(tail):
    for uri in (
        tail,
        f"http://localhost{tail}",
        f"https://localhost{tail}",
        f"http://127.0.0.1{tail}",
        f"msal{tail}",
    ):
        try:
            require_own_redirect(uri, "https://login.test")
        except SignInError:
            continue
        host = urlsplit(uri).hostname
        assert uri.startswith("msal") or host in ("localhost", "::1") or host.startswith("127.")


async def test_other_ways_back(dev):
    answer = await dev.authorize(response_mode="fragment")
    assert answer.headers["location"].startswith(f"{REDIRECT}#code=")
    page = await dev.authorize(response_mode="form_post", state='"><script>')
    assert page.status_code == 200
    is_never_framed(page)
    assert f'action="{REDIRECT}"' in page.text
    assert '"><script>' not in page.text
    code = re.search(r'name="code" value="([^"]+)"', page.text)[1]
    assert (await dev.redeem(code)).status_code == 200


@each_row(
    "changed, error",
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": ""}, "invalid_request"),
        ({"response_mode": "web_message"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "S512"}, "invalid_request"),
        ({"scope": f"{GRAPH}/Mail.Send https://other.test/x"}, "invalid_scope"),
        ({"scope": "é"}, "invalid_scope"),
        ({"scope": "x" * 5000}, "invalid_request"),
        ({"scope": f"https://{'x' * 2000}/.default"}, "invalid_request"),
        ({"nonce": "x" * 1000}, "invalid_request"),
        ({"login_hint": "x" * 1000}, "invalid_request"),
    ],
)
async def test_the_program_is_told_of_an_error(dev, changed, error):
    back = returned(await dev.authorize(**changed))
    assert (back["error"], back["state"]) == (error, "a state")
    assert back["error_description"].startswith("AADSTS")


@each_row(
    "changed",
    [{"client_id": ""}, {"redirect_uri": ""}, {"state": "x" * 5000}, {"client_id": "x" * 300}],
)
async def test_an_error_before_the_way_back_is_known(dev, changed):
    assert (await dev.authorize(**changed)).status_code == 400


FOREIGN = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "new"},
    {"referer": "https://evil.example/x"},
    {"referer": "https://[x"},
]
OWN = [{"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}, {"referer": f"{BASE}/x"}, {}]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_another_site_has_a_person_approve_first(dev, headers):
    page = await dev.authorize(headers, client_id="<app>")
    assert page.status_code == 200
    is_never_framed(page)
    assert "code" not in page.headers.get("location", "")
    assert "&lt;app&gt;" in page.text
    assert "<app>" not in page.text
    assert '<form method="post">' in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self' http:;" in policy
    answer = await dev.authorize(headers, "POST", {"approve": "yes"})
    assert answer.status_code == 403  # the form of another site approves nothing
    back = returned(
        await dev.authorize({"sec-fetch-site": "same-origin"}, "POST", {"approve": "yes"})
    )
    assert (await dev.redeem(back["code"])).status_code == 200
    back = returned(await dev.authorize(headers, prompt="none"))
    assert back["error"] == "interaction_required"


@each_row("headers", OWN)
async def test_a_program_and_a_person_are_not_asked(dev, headers):
    assert "code" in returned(await dev.authorize(headers))


async def test_with_a_token_a_code_needs_it(guarded):
    own = {"sec-fetch-site": "same-origin"}
    page = await guarded.authorize(own)
    assert page.status_code == 200
    assert 'name="token"' in page.text
    for wrong in ({"approve": "yes"}, {"approve": "yes", "token": "wrong"}, {"token": THE_TOKEN}):
        page = await guarded.authorize(own, "POST", wrong)
        assert page.status_code == 403
        assert 'role="alert"' in page.text
    assert returned(await guarded.authorize(prompt="none"))["error"] == "interaction_required"
    form = {"approve": "yes", "token": THE_TOKEN}
    back = returned(await guarded.authorize(own, "POST", form, login_hint="carol"))
    found = (await guarded.redeem(back["code"])).json()
    assert await guarded.mailbox(found) == "carol@example.test"


async def test_the_page_of_native_clients_is_blank(dev):
    page = await dev.http.get("/common/oauth2/nativeclient?code=x")
    assert (page.status_code, page.text) == (200, "")
    is_never_framed(page)
