"""The relay is killed while messages arrive: each event is posted, and those of a message in order."""

import random
import smtplib
import threading
from contextlib import suppress

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.webhooks import WebhookReceiver, by_message, hook, recorded

pytestmark = pytest.mark.crash

MESSAGES, CLIENTS, KILLS = 400, 4, 6
SEED = 20261125


def test_kills_in_between() -> None:
    drawn, accepted, over = random.Random(SEED), list[int](), threading.Event()
    numbers = iter(range(MESSAGES))

    def submit() -> None:
        for number in numbers:
            while not over.is_set():
                with suppress(OSError, smtplib.SMTPException, AssertionError, ValueError, KeyError):
                    if number % 4:
                        content = f"Subject: {number}\r\n\r\nHello.\r\n".encode()
                        relay.submit("guest@remote.test", ["alice@example.test"], content)
                    else:
                        relay.send_mail(to=["bob@example.test"], subject=str(number))
                    accepted.append(number)
                    break
                over.wait(0.05)

    with WebhookReceiver() as receiver:
        config = {"webhook": [hook(receiver)], "delivery": {"shutdown_grace": "1s"}}
        with RelayProcess(config=config) as relay:
            threads = [threading.Thread(target=submit) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            try:
                for number in range(KILLS):
                    goal = number * MESSAGES // KILLS + drawn.randint(1, MESSAGES // KILLS)
                    until("some were accepted", lambda: len(accepted) >= goal)  # noqa: B023
                    relay.kill()
                    relay.start()
                until("all were accepted", lambda: len(accepted) == MESSAGES)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            until("all were delivered", lambda: not relay.queue())
            events = by_message(recorded(relay, silent_s=3))
            assert len(events) >= MESSAGES
            receiver.until(lambda _: sum(map(len, events.values())) <= len(first_ids(receiver)))
            found = receiver.events
            assert by_message(found) == events
            repeated = len(found) - len(first_ids(receiver))
            assert repeated <= 500 * KILLS  # a block at each kill
            assert relay.faults() == []


def first_ids(receiver: WebhookReceiver) -> set[str]:
    return {header["webhook-id"] for _, header, _ in list(receiver.requests)}
