"""What machines of developers send: `relay dev` takes it, a service does not."""

import smtplib
import socket
from typing import Any

import pytest

from tests.support.dev_process import DevProcess
from tests.support.relay_process import until
from tests.support.tables import each_row

RUSSIAN = "ПК-Иванова"


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def swaks(run, relay, *words: str) -> Any:
    port = relay.ready["smtp"][0].rpartition(":")[2]
    return run("swaks", "--server", "127.0.0.1", "--port", port, "--body", "x", *words)


def inbox(relay: DevProcess, address: str) -> list[dict[str, Any]]:
    answer = relay.graph("GET", f"/users/{address}/messages", token=address)
    assert answer.status == 200, answer.body
    return answer.json()["value"]


@each_row(
    "helo, received",
    [
        (RUSSIAN, "from ??-??????? ("),
        ("My PC (home)", "from My?PC??home? ("),
        ("web_1", "from web_1 ("),
    ],
)
def test_any_name_of_a_client_is_taken(run, dev: DevProcess, helo: str, received: str) -> None:
    subject = f"Subject: {helo.encode().hex()}"
    done = swaks(
        run,
        dev,
        "--helo",
        helo,
        "--from",
        "app@shop.test",
        "--to",
        "pc@example.test",
        "--header",
        subject,
    )
    assert done.returncode == 0, done.stdout
    queue_id = done.stdout.partition("queued as ")[2].split()[0]
    assert dev.journey(queue_id)["client"]["helo"] == helo
    [found] = until(
        "delivered",
        lambda: [one for one in dev.maildir("pc") if f"Subject: {one['Subject']}" == subject],
    )
    assert str(found["Received"]).startswith(received)


@each_row(
    "line, code",
    [
        (f"EHLO {RUSSIAN}".encode("cp1251"), b"250"),
        (b"EHLO  PC \t ", b"250"),
        (b"EHLO", b"501"),
        (f"HELO {RUSSIAN}".encode(), b"250"),
        (b"EHLO " + b"x" * 255, b"250"),
        (b"EHLO " + b"x" * 256, b"501"),
        (b"EHLO a\x01b", b"501"),
        ("EHLO a\u2028b".encode(), b"501"),
    ],
)
def test_a_name_in_any_charset_is_one_printable_line(
    dev: DevProcess, line: bytes, code: bytes
) -> None:
    with socket.create_connection(dev.smtp_address()) as client:
        reader = client.makefile("rb")
        reader.readline()
        client.sendall(line + b"\r\nQUIT\r\n")
        replies = reader.read().splitlines()
    assert replies[0][:3] == code


def test_names_without_a_domain_are_local_and_containers_have_inboxes(run, dev: DevProcess) -> None:
    done = swaks(
        run,
        dev,
        "--helo",
        "web_1",
        "--from",
        "www-data",
        "--to",
        "root,root@Web_1,a@my_app.internal",
        "--header",
        "Subject: cron",
    )
    assert done.returncode == 0, done.stdout
    queue_id = done.stdout.partition("queued as ")[2].split()[0]
    dev.until_state(queue_id, "there")
    assert dev.states(queue_id) == {
        "root@example.test": "delivered",
        "root@web_1": "captured",
        "a@my_app.internal": "captured",
    }
    assert dev.journey(queue_id)["sender"] == "www-data@example.test"
    for address in ("root@example.test", "root@web_1", "a@my_app.internal"):
        assert [one["subject"] for one in inbox(dev, address)] == ["cron"]


def test_a_report_goes_back_to_a_container(dev: DevProcess) -> None:
    with smtplib.SMTP(*dev.smtp_address(), local_hostname="web_1") as client:
        client.sendmail("root@web_1", ["x+550@example.org"], b"Subject: lost\r\n\r\nx\r\n")
    about = "Undeliverable: lost"
    until("report", lambda: about in [one["subject"] for one in inbox(dev, "root@web_1")])
