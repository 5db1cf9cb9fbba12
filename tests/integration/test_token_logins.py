"""Programs that log in by SMTP with a bearer token: XOAUTH2 and OAUTHBEARER (RFC 7628)."""

import base64
import shutil
import smtplib
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

GATE = True

APP = account("app", client_id="app-1", client_secret="plain:s3cret", acts_for=["bob@example.test"])
MECHANISMS = ["XOAUTH2", "OAUTHBEARER"]
MESSAGE = "Subject: {}\r\n\r\nx\r\n"
Send = Callable[[RelayProcess, str, str, str, Path], None]


def by_curl(relay: RelayProcess, user: str, token: str, mechanism: str, folder: Path) -> None:
    host, port = relay.smtp_address()
    mail = folder / "mail"
    mail.write_text(MESSAGE.format(f"curl {mechanism}"))
    run(
        "curl",
        "--silent",
        "--show-error",
        f"smtp://{host}:{port}",
        "--user",
        user,
        "--oauth2-bearer",
        token,
        "--login-options",
        f"AUTH={mechanism}",
        "--mail-from",
        user,
        "--mail-rcpt",
        "alice@example.test",
        "--upload-file",
        str(mail),
    )


def by_msmtp(relay: RelayProcess, user: str, token: str, mechanism: str, folder: Path) -> None:
    host, port = relay.smtp_address()
    config = folder / "msmtprc"
    config.write_text(
        f"account default\nhost {host}\nport {port}\nfrom {user}\nuser {user}\ntls off\n"
        f"auth {mechanism.lower()}\npasswordeval echo {token}\n"
    )
    config.chmod(0o600)
    command = ("msmtp", f"--file={config}", "alice@example.test")
    run(*command, given=MESSAGE.format(f"msmtp {mechanism}"))


def by_smtplib(relay: RelayProcess, user: str, token: str, mechanism: str, folder: Path) -> None:
    with relay.smtp() as client:
        client.ehlo()
        start = f"user={user}" if mechanism == "XOAUTH2" else f"n,a={user},"
        client.auth(mechanism, lambda _=None: f"{start}\x01auth=Bearer {token}\x01\x01")
        mail = MESSAGE.format(f"smtplib {mechanism}")
        client.sendmail(user, ["alice@example.test"], mail)


def run(*command: str, given: str = "") -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    readonly = account("reads", scopes=["Mail.Read"])
    config = {"smtp": [{"listen": "127.0.0.1:0", "role": "submission"}]}
    return serve_module(config=config, accounts=[APP, readonly])


def issued(relay: RelayProcess) -> str:
    form = {
        "grant_type": "client_credentials",
        "client_id": "app-1",
        "client_secret": "s3cret",
        "scope": "https://graph.microsoft.com/.default",
    }
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = relay.request("POST", "/contoso/oauth2/v2.0/token", urlencode(form).encode(), headers)
    return str(answer.json()["access_token"])


@pytest.mark.parametrize("send", [by_curl, by_msmtp, by_smtplib])
def test_a_program_sends_with_the_token_of_an_account(
    relay: RelayProcess, send: Send, tmp_path: Path
) -> None:
    for mechanism in MECHANISMS:
        send(relay, "alice@example.test", "alice", mechanism, tmp_path)
        name = f"{send.__name__.removeprefix('by_')} {mechanism}"
        until("it has arrived", lambda name=name: name in relay.subjects("alice"))


@each_row("mechanism", MECHANISMS)
def test_an_application_sends_for_the_mailboxes_that_it_may_open(
    relay: RelayProcess, mechanism: str, tmp_path: Path
) -> None:
    token = issued(relay)
    by_smtplib(relay, "bob@example.test", token, mechanism, tmp_path)
    until("it has arrived", lambda: f"smtplib {mechanism}" in relay.subjects("alice"))
    for user, given, reply in (
        ("alice@example.test", token, "not for this user"),
        ("bob@example.test", f"{token[:-4]}AAAA", "not known here"),
        ("reads@example.test", "reads", "lacks the permission"),
    ):
        with pytest.raises(smtplib.SMTPAuthenticationError, match=reply):
            by_smtplib(relay, user, given, mechanism, tmp_path)
    assert token not in relay.log
    assert base64.b64encode(token.encode()).decode()[:40] not in relay.log


def test_a_development_relay_takes_any_token(tmp_path: Path, dev) -> None:
    relay = dev("--no-demo")
    by_smtplib(relay, "someone@example.test", "eyJ0.eyJ.x", "XOAUTH2", tmp_path)
    relay.until_messages("alice@example.test", 1)


def test_a_development_relay_with_strict_senders_compares_it(tmp_path: Path, dev) -> None:
    """Also the token of a user who signed in."""
    relay = dev("--no-demo", "--strict-senders")
    form = {
        "grant_type": "password",
        "client_id": "desktop",
        "username": "alice",
        "password": "alice",
    }
    url = f"http://{relay.ready['http'][0]}/contoso/oauth2/v2.0/token"
    signed_in = httpx.post(url, data=form, trust_env=False).json()["access_token"]
    for number, token in enumerate(("alice@example.test", signed_in), 1):
        by_smtplib(relay, "alice@example.test", token, "XOAUTH2", tmp_path)
        relay.until_messages("alice@example.test", number)
        with pytest.raises(smtplib.SMTPAuthenticationError, match="not for this user"):
            by_smtplib(relay, "bob@example.test", token, "XOAUTH2", tmp_path)
