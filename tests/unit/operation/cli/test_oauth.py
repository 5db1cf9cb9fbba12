"""`relay oauth login | test`, and what `relay check` says of [[oauth]]."""

import asyncio
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import pytest
from click.testing import CliRunner

from relay.base.clock import SystemClock
from relay.delivery.oauth import grants
from relay.operation.cli import oauth
from relay.operation.cli.root import cli
from relay.operation.commands.check import check_file
from tests.support.client_keys import base64url
from tests.support.fake_graph import FakeGraph, error
from tests.support.relay_config import written_settings
from tests.support.token_endpoint import TokenEndpoint, refused, token

ROUTE = {"next_hop": "smtp://127.0.0.1:1", "domain": "*"}
AUTH = {"user": "printer@contoso.example", "oauth": "m365"}
CODE = {
    "device_code": "dev1ce-c0de",
    "user_code": "ABCD-1234",
    "verification_uri": "https://login.test/device",
    "expires_in": 900,
    "interval": 5,
}
PENDING, SLOWER = refused("authorization_pending"), refused("slow_down")
SECRETS = ("dev1ce-c0de", "t0ken", "refresh-t0ken")
Relay = Callable[..., tuple[int, str, str]]


@pytest.fixture
def relay(tmp_path: Path, monkeypatch) -> Relay:
    """A command on a configuration with one client; what it waits takes no time."""

    async def no_time(seconds: float) -> None:
        if seconds:  # else it only lets others run
            waited.append(seconds)

    def run(endpoint: TokenEndpoint, *words: str, stdin: Any = None, **client: Any) -> Any:
        given = {"name": "m365", "client_id": "app", "token_url": endpoint.url, "scope": "mail"}
        given = {name: value for name, value in (given | client).items() if value}
        changes = {"oauth": [given], "route": [{**ROUTE, "auth": AUTH, **run.route}], **run.more}
        run.settings = written_settings(tmp_path, changes)
        run.settings.state_dir.mkdir(exist_ok=True)
        command = ["oauth", *words, "--config", str(tmp_path / "relay.toml")]
        done = CliRunner().invoke(cli, command, input=stdin, standalone_mode=False)
        text = done.stdout + done.stderr + str(done.exception)
        assert not [one for one in SECRETS if one in text]
        return getattr(done.exception, "code", done.exit_code), done.stdout, text

    run.route, run.more = {}, {}
    run.waited = waited = list[float]()
    run.refresh = tmp_path / "state/oauth/m365"
    monkeypatch.setattr(oauth.asyncio, "sleep", no_time)
    return run


def test_a_device_code_is_entered_by_a_person(relay):
    done = token("t0ken", refresh_token="refresh-t0ken")
    with TokenEndpoint(CODE, PENDING, SLOWER, PENDING, done) as endpoint:
        code, _, text = relay(endpoint, "login", "m365")
        assert (code, "https://login.test/device and enter the code ABCD-1234" in text) == (0, True)
        assert relay.waited == [5, 5, 10, 10]
        assert endpoint.paths == ["/devicecode", *["/token"] * 4]
        assert endpoint.forms[0] == {"client_id": "app", "scope": "mail"}
        assert endpoint.forms[1]["device_code"] == CODE["device_code"]
    assert relay.refresh.read_text() == "refresh-t0ken"
    assert relay.refresh.stat().st_mode & 0o777 == 0o600
    assert relay.refresh.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ([CODE, PENDING], 77, "the code was not entered in time"),
        ([CODE, refused("access_denied")], 77, "access_denied"),
        ([CODE, token("t0ken")], 78, "no refresh token: scope needs offline_access"),
        ([refused("invalid_client", "AADSTS7000218", 401)], 78, "AADSTS7000218"),
        ([(503, b"")], 75, "the answer (503)"),
    ],
)
def test_a_login_that_fails_stores_nothing(relay, answers, code, words):
    with TokenEndpoint(*answers) as endpoint:
        found, _, text = relay(endpoint, "login", "m365")
    assert (found, words in text) == (code, True), text
    assert sum(relay.waited) <= 900
    assert not relay.refresh.exists()


def pasted(monkeypatch, **changed: str) -> None:
    """Have a person sign in at the page that is shown, and paste the address."""

    def prompt(*_: Any, **__: Any) -> str:
        query = {name: one[0] for name, one in parse_qs(urlsplit(shown[-1]).query).items()}
        shown.append(query["code_challenge"])
        assert (query["redirect_uri"], query["access_type"]) == ("http://127.0.0.1", "offline")
        answer = {"state": query["state"], "code": "c0de"} | changed
        return "http://127.0.0.1/?" + "&".join(f"{k}={v}" for k, v in answer.items() if v)

    def echo(text: str, **_: Any) -> None:
        shown.append(next((one for one in text.split() if one.startswith("https:")), text))

    shown = pasted.shown = list[str]()
    monkeypatch.setattr(click, "prompt", prompt)
    monkeypatch.setattr(click, "echo", echo)


GOOGLE = {"provider": "google", "client_secret": "of-an-app", "token_url": "", "scope": ""}


def test_the_address_after_google_s_sign_in_is_pasted(relay, monkeypatch):
    with TokenEndpoint(token("t0ken", refresh_token="refresh-t0ken")) as endpoint:
        monkeypatch.setattr(grants, "_GOOGLE", endpoint.url)
        for changed in ({"state": "another"}, {"code": ""}, {"code": "", "error": "access_denied"}):
            pasted(monkeypatch, **changed)
            assert relay(endpoint, "login", "m365", **GOOGLE)[0] == 77
        assert endpoint.forms == []
        pasted(monkeypatch)
        assert relay(endpoint, "login", "m365", **GOOGLE)[0] == 0
        (form,) = endpoint.forms
    digest = oauth.hashlib.sha256(form["code_verifier"].encode()).digest()
    assert base64url(digest) in pasted.shown  # RFC 7636 4.6
    assert (form["code"], form["client_secret"]) == ("c0de", "of-an-app")
    assert relay.refresh.read_text() == "refresh-t0ken"


def test_a_test_says_for_whom_the_token_is(relay):
    claims = base64url(
        json.dumps({"upn": "ann@x.test", "roles": ["SMTP.Send", "Mail.Send"]}).encode()
    )
    with TokenEndpoint(
        token(f"e30.{claims}.t0ken"), token("opaque-t0ken", scope="mail")
    ) as endpoint:
        code, _, text = relay(endpoint, "test", "m365")
        assert (code, "relay oauth login m365" in text) == (77, True)
        relay.refresh.parent.mkdir()
        relay.refresh.write_text("refresh-t0ken")
        _, shown, _ = relay(endpoint, "test", "m365", "--json")
        assert {
            "for": "ann@x.test",
            "scopes": "SMTP.Send Mail.Send",
            "use": "smtp",
        }.items() <= json.loads(shown)[0].items()
        _, shown, _ = relay(endpoint, "test", "m365")
        assert shown.startswith("smtp: printer@contoso.example, until 20")
    code, _, text = relay(endpoint, "test", "m365")
    assert (code, "connection refused" in text) == (75, True)
    assert relay(endpoint, "test", "other")[0] == 78
    with TokenEndpoint(refused("invalid_grant")) as endpoint:  # no person can sign in for it
        assert relay(endpoint, "test", "m365", client_secret="of-an-app")[0] == 78


GRANT = "HTTP 403 ErrorAccessDenied: said Graph (request-id r1); Mail.ReadWrite or Mail.Send is"


async def test_the_login_of_a_fallback_is_signed_in_for_and_tested(relay, monkeypatch):
    done = token("token", refresh_token="refresh-t0ken")
    client = {"provider": "microsoft", "tenant": "t.test", "token_url": "", "scope": ""}
    with TokenEndpoint(CODE, done, CODE, done) as endpoint, monkeypatch.context() as patched:
        patched.setattr(grants, "_MICROSOFT", endpoint.url)
        ask = partial(asyncio.to_thread, relay, endpoint, **client)
        async with FakeGraph(lambda: 0) as graph:
            relay.route = {"next_hop": f"graph://127.0.0.1:{graph.port}", "fallback_auth": AUTH}
            relay.route["fallback"] = "smtp://127.0.0.1:2"
            assert (await ask("login", "m365"))[0] == 0
            _, shown, _ = await ask("test", "m365", "--json")
            seen = [(row["use"], row["seen"][:20]) for row in json.loads(shown)]
            assert seen == [("graph", "may read the mailbox"), ("smtp", "")]
            asked = [form["scope"].split("/", 3)[2] for form in endpoint.forms if "scope" in form]
            assert asked == ["graph.microsoft.com", "outlook.office.com"] * 2
            own = {**ROUTE, "auth": AUTH, **relay.route}  # of two, that which makes drafts
            relay.more = {"route": [own, {**own, "domain": "b.test", "confirm": False}]}
            graph.fault = lambda *_: error(403, "ErrorAccessDenied")
            code, _, text = await ask("test", "m365")
            assert (code, GRANT in text) == (78, True)
            graph.fault = lambda *_: (200, b"<html>", {})
            assert (await ask("test", "m365"))[0] == 75
        assert (await ask("test", "m365"))[0] == 75


def test_check_says_what_is_missing(relay, tmp_path):
    def found(*, online: bool = False, **client: Any) -> list[tuple[str, str]]:
        relay(endpoint, "test", "m365", **client)
        config = tmp_path / "relay.toml"
        findings = check_file(config, dict(os.environ), SystemClock(), online=online)
        wanted = ("oauth", "permissions")
        return [(one.verdict, one.text) for one in findings if one.what in wanted]

    with TokenEndpoint((401, b"")) as endpoint:
        ((verdict, text),) = found()
        assert (verdict, "mail waits in class auth" in text) == ("warning", True)
        assert 'oauth[0]: "m365": ' in text
        (tmp_path / "app.pem").write_text("no key")
        (tmp_path / "app.pem").chmod(0o644)
        wide, (_, text) = found(certificate="app.pem")
        assert "others can read it" in wide[1]
        assert "expected an RSA key in PEM" in text
        assert found(client_secret="in-clear")[0][0] == "ok"
        verdict, text = found(client_secret="in-clear", online=True)[-1]
        assert (verdict, "the answer (401)" in text) == ("failed", True)
        assert "in-clear" not in text


def test_a_person_signs_in_at_relay_s_own_token_endpoint(dev, relay):
    """Its HTTP port is a proxy behind which it is Microsoft's login host; the route names its CA."""
    cloud = dev("--no-demo")
    relay.more = {"delivery": {"proxy": f"http://{cloud.ready['http'][0]}"}}
    relay.route = {"next_hop": "smtp://smtp.office365.com:587", "ca": cloud.ready["bundle"]}
    client = {"provider": "microsoft", "tenant": "contoso", "token_url": "", "scope": ""}
    with TokenEndpoint({}) as unused:
        code, _, text = relay(unused, "login", "m365", **client)
        assert code == 0, text
        first = relay.refresh.read_text()
        code, shown, text = relay(unused, "test", "m365", "--json", **client)
        assert code == 0, text
        assert json.loads(shown)[0]["for"].endswith("@example.test")
        assert relay.refresh.read_text() != first  # it was replaced
        relay.route = {"next_hop": "smtp://smtp.office365.com:587"}
        code, _, text = relay(unused, "test", "m365", **client)
        assert (code, "TLS: self" in text or "TLS: unable" in text) == (75, True), text
        assert f"by the proxy {cloud.ready['http'][0]}: " in text
