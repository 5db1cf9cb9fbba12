"""A thief has alice's secrets: what the operator takes away ends, whatever else is wrong."""

import smtplib
import socket
from itertools import takewhile

import pytest

from tests.integration.test_reload import CONFIGURATION, UNAVAILABLE, hang_up
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess

ALICE, BOB, EVE = "alice@example.test", "bob@example.test", "eve@example.test"
LOST = f"stays active, but for rights that accounts have lost: {ALICE}\n"


@pytest.fixture
def relay(serve) -> RelayProcess:
    return serve(
        config={"smtp": [{"listen": "127.0.0.1:0", "role": "submission"}]},
        accounts=[account("eve", role="read")],
    )


def codes(relay: RelayProcess, name: str) -> tuple[int, int]:
    """The answers to a login by SMTP and to a request."""
    with relay.smtp() as session:
        try:
            login = session.login(f"{name}@example.test", name)[0]
        except smtplib.SMTPAuthenticationError as error:
            login = error.smtp_code
    return login, relay.graph("GET", "/me/messages", token=name).status


def test_a_typo_elsewhere_keeps_no_stolen_login(relay: RelayProcess) -> None:
    config = relay.folder / "relay.toml"
    config.write_text(config.read_text().replace("[delivery]\n", "[delivery]\nretyr = 1\n"))
    with relay.smtp() as session:
        session.login(ALICE, "alice")
        for verb in ("password", "token"):
            assert relay.cli("account", verb, ALICE, "--remove").returncode == 0
        assert relay.cli("account", "add", "eve@example.test").returncode == CONFIGURATION
        assert codes(relay, "alice") == (235, 200)
        hang_up(relay, "not reloaded")
        assert session.mail(ALICE)[0] == 421
    assert (codes(relay, "alice"), codes(relay, "bob")) == ((535, 401), (235, 200))
    done = relay.cli("reload")
    assert (done.returncode, "delivery.retyr: " in done.stderr) == (CONFIGURATION, True)
    assert done.stderr.endswith(LOST)

    assert relay.cli("account", "remove", BOB).returncode == 0
    assert relay.cli("reload").stderr.endswith(f"{ALICE}, {BOB}\n")
    assert codes(relay, "bob") == (535, 401)
    for name in (ALICE, BOB):  # half a reload lets no mail bounce
        sent = relay.until_final(relay.send_mail(token="carol", to=[name], subject="stays"))
        assert sent["state"] == "delivered"
    accounts = relay.folder / "accounts.toml"
    accounts.write_text(f"{accounts.read_text()}[[account]]\nadress = 1\n")
    assert "accounts.toml:" in relay.cli("reload").stderr
    assert relay.cli("account", "remove", ALICE).returncode == CONFIGURATION


def test_without_a_configuration_that_can_be_read(relay: RelayProcess) -> None:
    config, state = relay.folder / "relay.toml", str(relay.folder / "state")
    config.write_text(f"{config.read_text()}\n[delivery\n")
    assert relay.cli("queue", "hold", "--login", ALICE).returncode == 0  # state_dir is above
    before = config.read_text()
    config.write_text(f'hostname = "\n{before}')
    assert relay.cli("queue", "list").returncode == 0  # its line is TOML
    assert "stays active" in relay.cli("reload").stderr
    config.write_text(before.replace("state_dir = ", "state_dir = ["))
    remove = ("account", "password", ALICE, "--remove")
    for words in (("queue", "list"), ("pause", "delivery"), ("reload",), remove):
        assert relay.cli(*words).returncode == CONFIGURATION
    assert relay.cli("reload").stderr.endswith("no relay was asked: add --state-dir DIR\n")
    assert relay.cli(*remove, "--accounts", str(relay.folder / "accounts.toml")).returncode == 0
    for words in (("queue", "hold", "--login", ALICE), ("pause", "delivery")):
        assert relay.cli(*words, "--state-dir", state).returncode == 0
    assert relay.cli("reload", "--state-dir", state).stderr.endswith(LOST)
    assert codes(relay, "alice") == (535, 200)
    relay.stop()
    assert relay.cli("queue", "list", "--state-dir", state).returncode == UNAVAILABLE


def test_requests_that_began_before_show_and_send_nothing_afterwards(relay: RelayProcess) -> None:
    body = (
        b'{"message": {"subject": "of eve", "toRecipients": [{"emailAddress": {"address": "%s"}}]}}'
    )
    body %= BOB.encode()
    head = f"POST /v1.0/me/sendMail HTTP/1.1\r\nContent-Length: {len(body)}\r\nContent-Type: application/json"
    heads = [
        f"GET {path} HTTP/1.1"
        for path in (
            f"/relay/v1/messages?to={BOB}&wait=60",
            f"/relay/v1/messages/{BOB}/wait?timeout=60",
            "/relay/v1/events",
        )
    ]
    clients = [socket.create_connection(relay.http, 60) for _ in range(4)]
    for client, request in zip(clients, (*heads, head), strict=True):
        fields = "Host: x\r\nConnection: close\r\nAuthorization: Bearer eve\r\n\r\n"
        client.sendall(f"{request}\r\n{fields}".encode())
    clients[-1].sendall(body[:-1])
    assert relay.cli("account", "remove", EVE).returncode == 0
    assert relay.cli("reload").returncode == 0
    clients[-1].sendall(body[-1:])
    relay.until_final(relay.send_mail(token="alice", to=[BOB], subject="later"))
    answers = []
    for client in clients:
        with client, client.makefile("rb") as file:
            lines = list(takewhile(lambda line: not line.startswith(b"data: "), file))
            answers.append((lines[0].split()[1], file.read(1)))
    assert answers == [(code, b"") for code in (b"401", b"401", b"200", b"401")]
    assert [one["subject"] for one in relay.messages("inbox", token="bob")] == ["later"]
