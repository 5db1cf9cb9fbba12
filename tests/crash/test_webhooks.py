"""The relay is killed while messages arrive: each event is posted, and those of a message in order."""

import random

import pytest

from tests.crash.conftest import clients
from tests.crash.test_subscriptions import submit
from tests.support.relay_process import RelayProcess, until
from tests.support.webhooks import WebhookReceiver, by_message, hook, recorded

pytestmark = pytest.mark.crash

MESSAGES, CLIENTS, KILLS = 400, 4, 6
SEED = 20261125


def test_kills_in_between() -> None:
    drawn = random.Random(SEED)

    def send(number: int) -> None:
        if number % 4:
            submit(relay, number)
        else:
            relay.send_mail(to=["bob@example.test"], subject=str(number))

    with WebhookReceiver() as receiver:
        config = {"webhook": [hook(receiver)], "delivery": {"shutdown_grace": "1s"}}
        with RelayProcess(config=config) as relay:
            with clients(CLIENTS, send, MESSAGES) as accepted:
                for number in range(KILLS):
                    goal = number * MESSAGES // KILLS + drawn.randint(1, MESSAGES // KILLS)
                    until("some were accepted", lambda: len(accepted) >= goal)  # noqa: B023
                    relay.kill()
                    relay.start()
            until("all were delivered", lambda: not relay.queue())
            # The feed rests for up to 5 s after a read that a busy machine made slow.
            events = by_message(recorded(relay, silent_s=7))
            assert len(events) >= MESSAGES
            receiver.until(lambda _: sum(map(len, events.values())) <= len(first_ids(receiver)))
            found = receiver.events
            assert by_message(found) == events
            repeated = len(found) - len(first_ids(receiver))
            assert repeated <= 500 * KILLS  # a block at each kill
            assert relay.faults() == []


def first_ids(receiver: WebhookReceiver) -> set[str]:
    return {header["webhook-id"] for _, header, _ in list(receiver.requests)}
