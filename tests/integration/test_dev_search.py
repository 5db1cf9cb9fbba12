"""The search of a real development relay: every message at once, from its index."""

import random
import smtplib
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.dev_process import DevProcess
from tests.support.relay_config import OPERATOR

MESSAGES = 1000
MAILBOXES = 300


@pytest.fixture(scope="module")
def relay() -> Iterator[DevProcess]:
    made = DevProcess("--no-demo")
    try:
        yield made.start()
    finally:
        made.close()


def found(relay: DevProcess, text: str) -> list[str]:
    answer = relay.graph("GET", f"/relay/v1/messages?q={quote(text)}&limit=100", token=OPERATOR)
    assert answer.status == 200, answer.body
    assert answer.json()["older"] is None
    return [one["subject"] for one in answer.json()["messages"]]


def send(relay: DevProcess, messages: list[tuple[str, str, str]]) -> None:
    host, port = relay.ready["smtp"][0].rsplit(":", 1)
    with smtplib.SMTP(host, int(port)) as session:
        for recipient, subject, text in messages:
            content = f"From: App <app@shop.test>\r\nTo: {recipient}\r\nSubject: {subject}\r\n\r\n{text}\r\n"
            session.sendmail("app@shop.test", [recipient], content.encode())


def test_each_message_is_found_by_a_part_of_a_word_of_its_text(relay: DevProcess) -> None:
    sent = [
        (f"user{n % MAILBOXES}@mail{n % 7}.test", f"message {n}", f"Your code is ref{n:06}xyz.")
        for n in range(MESSAGES)
    ]
    send(relay, sent)
    for n in [MESSAGES - 1, 0, *random.Random(1).sample(range(MESSAGES), 20)]:
        assert found(relay, f"EF{n:06}x") == [f"message {n}"]
    assert found(relay, "nowhere-at-all") == []
