"""`relay dev --listen-all --token T`: what other machines can and cannot do."""

import re
import smtplib
import socket
import ssl

import httpx
import pytest

from relay.base.accounts.passwords import FREE_FAILURES_OF_CLIENT
from relay.base.sockets import has_ipv6
from relay.development.option_fields import PORTS
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

TOKEN = "a-token-of-a-good-length"
GRANT = {"grant_type": "client_credentials", "scope": "https://graph.microsoft.com/.default"}


@pytest.fixture(scope="module")
def relay(own_address: str, dev_module) -> DevProcess:
    return dev_module(
        "--listen-all", "--host", "mail.test", "--host", own_address, RELAY_DEV_TOKEN=TOKEN
    )


def port(running: DevProcess, name: str) -> int:
    return int(running.ready[name][0].rpartition(":")[2])


def get(url: str, token: str, **headers: str) -> httpx.Response:
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.get(url, headers=headers, trust_env=False)


def test_it_listens_on_every_address(relay: DevProcess, own_address: str) -> None:
    assert relay.ready["token"] == TOKEN
    families = 2 if has_ipv6() else 1
    for name in PORTS:
        hosts = [one.rpartition(":")[0] for one in relay.ready[name]]
        assert hosts == ["0.0.0.0", "[::]"][:families]
        assert {one.rpartition(":")[2] for one in relay.ready[name]} == {str(port(relay, name))}
        for host in (own_address, "127.0.0.1", *(["::1"] if families == 2 else [])):
            socket.create_connection((host, port(relay, name)), timeout=120).close()
    assert f"0.0.0.0:{port(relay, 'smtp')}" in relay.log
    assert TOKEN not in relay.log


@pytest.mark.parametrize(
    "path",
    [
        "/v1.0/me",
        "/v1.0/users/alice@example.test/messages",
        "/relay/v1/messages",
        "/relay/v1/dev/internet",
    ],
)
def test_only_the_token_is_accepted(relay: DevProcess, own_address: str, path: str) -> None:
    for host in (own_address, "127.0.0.1"):
        url = f"http://{host}:{port(relay, 'http')}{path}"
        assert get(url, TOKEN).status_code == 200
        for token in ("", "alice", "operator", "alice@example.test", TOKEN[:-1], "a.b.c"):
            assert get(url, token).status_code == 401


def test_the_token_is_the_secret_of_every_client(relay: DevProcess, own_address: str) -> None:
    base = f"http://{own_address}:{port(relay, 'http')}"
    path = "/any/oauth2/v2.0/token"
    for secret, status in ((TOKEN, 200), ("any", 401), ("", 401)):
        form = {**GRANT, "client_id": "billing", "client_secret": secret}
        answer = httpx.post(base + path, data=form, trust_env=False)
        assert answer.status_code == status
        if status == 200:
            token = answer.json()["access_token"]
            assert get(f"{base}/v1.0/users/bob@example.test/messages", token).status_code == 200


def test_hosts_are_addresses_and_the_given_names(relay: DevProcess, own_address: str) -> None:
    url = f"http://127.0.0.1:{port(relay, 'http')}/v1.0/me"
    for host in ("mail.test:1", own_address, "192.0.2.7:8025", "[2001:db8::1]:8025", "localhost"):
        assert get(url, TOKEN, Host=host).status_code == 200
    assert get(url, TOKEN, Host="evil.test").status_code == 421


def test_https_has_a_certificate_for_the_given_hosts(relay: DevProcess, own_address: str) -> None:
    trust = ssl.create_default_context(cafile=relay.ready["ca"])
    url = f"https://{own_address}:{port(relay, 'https')}/v1.0/me"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.get(url, headers=headers, verify=trust, trust_env=False).status_code == 200


def test_mail_is_captured_without_a_login(relay: DevProcess, own_address: str) -> None:
    with smtplib.SMTP(own_address, port(relay, "smtp")) as session:
        session.sendmail("app@b.test", ["x@elsewhere.test"], "Subject: from a container\n\nx")
    url = f"http://127.0.0.1:{port(relay, 'http')}/relay/v1/messages?to=x@elsewhere.test"
    until(
        "it is captured",
        lambda: [one["state"] for one in get(url, TOKEN).json()["messages"]] == ["captured"],
    )


def test_a_login_without_tls_proves_nothing(relay: DevProcess, own_address: str) -> None:
    for number in range(2 * FREE_FAILURES_OF_CLIENT):  # no guesses: none is delayed
        with smtplib.SMTP(own_address, port(relay, "smtp")) as session:
            session.ehlo()
            assert not session.has_extn("starttls")
            session.login("apikey", f"guess {number}")
    assert get(f"http://{own_address}:{port(relay, 'http')}/v1.0/me", TOKEN).status_code == 200


def test_a_login_under_tls_needs_the_token(relay: DevProcess, own_address: str) -> None:
    assert (
        "(TLS)    any login or none, under TLS with the password TOKEN, any sender\n" in relay.log
    )
    trust = ssl.create_default_context(cafile=relay.ready["ca"])
    with smtplib.SMTP(own_address, port(relay, "submission")) as session:
        session.ehlo()
        assert not session.has_extn("auth")
        session.starttls(context=trust)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            session.login("alice", "alice")
        session.login("alice", TOKEN)
        session.sendmail("shop@elsewhere.test", ["bob@example.test"], "Subject: x\n\nx")


def test_guesses_of_the_token_are_delayed(relay: DevProcess, own_address: str) -> None:
    """By bearer token and by the login of the pages; other addresses are not concerned."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.5")) as client:
        base = f"http://127.0.0.1:{port(relay, 'http')}"

        def ask(token: str) -> httpx.Response:
            return client.get(f"{base}/v1.0/me", headers={"Authorization": f"Bearer {token}"})

        form = re.search(r'name="csrf" value="([^"]*)"', client.get(f"{base}/login").text)
        fields = {"csrf": form[1], "user": "", "password": TOKEN}
        statuses = [ask(f"guess-{number}").status_code for number in range(60)]
        assert set(statuses[: FREE_FAILURES_OF_CLIENT - 1]) == {401}
        assert statuses.count(401) < FREE_FAILURES_OF_CLIENT + 6
        while (answer := ask("one-more")).status_code == 401:
            pass
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "TooManyRequests")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.post(f"{base}/login", data=fields).status_code == 429
    assert get(f"http://{own_address}:{port(relay, 'http')}/v1.0/me", TOKEN).status_code == 200
