"""Tokens of applications over reloads and restarts, and the key that signs them."""

import os
import signal
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.support.graph_client import Answer
from tests.support.relay_config import account, to_toml
from tests.support.relay_process import RelayProcess, until

APP = account("app", client_id="app-1", client_secret="plain:s3cret", acts_for=["bob@example.test"])
OF_APP = "/users/app@example.test"
OF_BOB = "/users/bob@example.test/messages"


@pytest.fixture
def relay(serve):
    return serve(accounts=[APP])


def sign_in(relay: RelayProcess, secret: str = "s3cret", **changed: str) -> Answer:
    form = {
        "grant_type": "client_credentials",
        "client_id": "app-1",
        "client_secret": secret,
        "scope": "https://graph.microsoft.com/.default",
    } | changed
    return relay.request(
        "POST",
        "/contoso/oauth2/v2.0/token",
        urlencode(form).encode(),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )


def new_token(relay: RelayProcess) -> str:
    answer = sign_in(relay)
    assert answer.status == 200, answer.body
    return str(answer.json()["access_token"])


def reload_accounts(relay: RelayProcess, *entries: object) -> None:
    before = relay.log.count("reloaded")  # or "not reloaded"
    (relay.folder / "accounts.toml").write_text(to_toml({"account": entries}))
    assert relay.process is not None
    os.kill(relay.process.pid, signal.SIGHUP)
    until("reloaded", lambda: relay.log.count("reloaded") > before)


def test_a_token_ends_with_its_client_and_lives_over_a_restart(relay):
    token, others = new_token(relay), [account("bob"), account("alice")]
    assert relay.graph("GET", OF_APP, token=token).json()["mail"] == "app@example.test"
    assert "delegated authentication flow" in relay.graph("GET", "/me", token=token).body.decode()
    assert relay.graph("GET", "/me", token="bob").status == 200  # the account's own
    assert relay.graph("GET", OF_BOB, token=token).status == 200
    assert relay.graph("GET", "/users/alice@example.test", token=token).status == 403
    relay.stop()
    relay.start()
    assert relay.graph("GET", OF_BOB, token=token).status == 200
    reload_accounts(relay, {**APP, "scopes": ["Mail.Send"]}, *others)
    assert relay.graph("GET", OF_BOB, token=token).code == "ErrorAccessDenied"
    reload_accounts(relay, {**APP, "client_secret": "plain:another"}, *others)
    assert relay.graph("GET", OF_BOB, token=token).status == 401
    reload_accounts(relay, APP, *others)
    assert relay.graph("GET", OF_BOB, token=token).status == 200
    reload_accounts(relay, *others)
    assert relay.graph("GET", OF_BOB, token=token).status == 401
    assert sign_in(relay, "hunter2").json()["error"] == "invalid_client"
    until("logged", lambda: "sign-in rejected" in relay.log)
    assert (token in relay.log, "hunter2" in relay.log) == (False, False)


@pytest.mark.parametrize("name", ["client_certificate", "client_keys"])
def test_a_key_of_an_older_release_ends_no_account_and_its_sign_in_says_what_to_use(relay, name):
    certified = account("certified", client_id="app-2") | {name: "app.pem"}
    reload_accounts(relay, APP, certified)
    line = f"account[1].{name}: found a key that 0.7.0 has removed"
    until("logged", lambda: line in relay.log)
    assert relay.graph("GET", "/me", token="certified").status == 200
    form = {"client_id": "app-2", "client_secret": "", "client_assertion": "x.y.z"}
    answer = sign_in(relay, **form).json()
    assert (answer["error"], answer["error_codes"]) == ("invalid_client", [7000218])
    assert "sign in with a client_secret" in answer["error_description"]
    done = relay.cli("check")
    assert line in done.stdout + done.stderr
    relay.restart()
    assert relay.log.count(line) == 2


def test_an_open_smtp_session_ends_with_the_client_whose_token_opened_it(relay):
    token = sign_in(relay).json()["access_token"]
    with relay.smtp() as client:
        client.ehlo()
        xoauth2 = f"user=bob@example.test\1auth=Bearer {token}\1\1"
        client.auth("XOAUTH2", lambda _=None: xoauth2)
        assert client.docmd("MAIL FROM:<bob@example.test>")[0] == 250
        reload_accounts(relay, account("bob"), account("alice"))
        assert client.docmd("RCPT TO:<alice@example.test>")[0] == 421


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_a_faulty_key_ends_only_the_tokens_that_it_signed(relay, make):
    token = sign_in(relay).json()["access_token"]
    file = relay.folder / "state" / "token-key.json"
    file.unlink()
    make(file, 0o600)
    relay.restart()
    assert relay.graph("GET", "/me/mailFolders/inbox").status == 200
    refused = [relay.graph("GET", OF_APP, token=token), sign_in(relay)]
    assert [(one.status, one.headers["retry-after"]) for one in refused] == [(503, "60")] * 2
    xoauth2 = b64encode(f"user=bob@example.test\1auth=Bearer {token}\1\1".encode()).decode()
    with relay.smtp() as client:
        client.ehlo()
        assert client.docmd("AUTH", f"XOAUTH2 {xoauth2}")[0] == 334
        code, reply = client.docmd("")
        assert (code, b"4.7.0 The key of access tokens cannot be used" in reply) == (454, True)
    done = relay.cli("check")
    assert done.returncode == 78
    assert "token-key.json: found " in done.stderr
