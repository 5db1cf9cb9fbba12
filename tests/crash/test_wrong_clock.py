"""The clock is wrong while a relay runs and right at its next start: nothing is lost, late or early."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event

import pytest

from tests.support.long_tests import sampled
from tests.support.relay_process import until
from tests.support.remotes import Remotes, received
from tests.support.wall_clock import WallClock

BOB = "bob@example.test"
FAR = timedelta(days=400)


@pytest.mark.parametrize("wrong", sampled([FAR, -FAR]), ids=["ahead", "behind"])
def test_every_202_is_delivered_once_whatever_the_clock_was(
    tmp_path: Path, wrong: timedelta, serve
) -> None:
    wall = WallClock(tmp_path)
    wall.jump(wrong)
    delivery = {"retry": ["1h"], "expire_after": "2h", "delay_warning_after": "1h"}
    config = {"delivery": delivery, "spool": {"keep": "2h"}}
    relay = serve(config=config, environment=wall.environment)
    enough, dead = Event(), Event()
    accepted: list[str] = []

    def send(number: int) -> None:
        for turn in range(200):
            subject = f"{number}-{turn}"
            try:
                relay.send_mail(to=[BOB], subject=subject)
            except (OSError, AssertionError, EOFError):
                return
            accepted.append(subject)
            if len(accepted) >= 40:
                enough.set()
            if dead.is_set():
                return

    with ThreadPoolExecutor(8) as clients:
        for number in range(8):
            clients.submit(send, number)
        try:
            assert enough.wait(60)
        finally:
            relay.kill()
            dead.set()
    left = len(relay.pending_submissions())
    wall.jump(timedelta())
    relay.start()
    until("no submission is pending", lambda: not relay.pending_submissions(), timeout_s=60)
    until("the queue is empty", lambda: not relay.queue(), timeout_s=60)
    found = Counter(relay.subjects("bob"))
    assert {one: found[one] for one in accepted} == dict.fromkeys(accepted, 1), (
        f"{left} submissions left"
    )
    assert max(found.values()) == 1
    assert relay.subjects("alice") == []  # no report of any kind


def test_new_mail_has_the_time_of_the_wall_clock_that_has_jumped(
    tmp_path: Path, remotes: Remotes, serve
) -> None:
    wall, remote = WallClock(tmp_path), remotes.start("a.test")
    relay = serve(remotes, environment=wall.environment)
    wall.jump(FAR)
    until("it is reported", lambda: "the clock has jumped" in relay.log)
    journey = relay.until_final(relay.send_mail(to=["http@a.test"]))
    relay.until_final(relay.submit("alice@example.test", ["smtp@a.test"]))
    message = message_from_bytes(received(remote, "http@a.test").content)
    hop = message_from_bytes(received(remote, "smtp@a.test").content)["Received"]
    times = [
        parsedate_to_datetime(one) for one in (message["Date"], hop.rpartition(";")[2].strip())
    ]
    times += [datetime.fromisoformat(step["at"]) for step in journey["steps"]]
    assert all(abs(one - FAR - datetime.now(UTC)) < timedelta(minutes=1) for one in times), times
