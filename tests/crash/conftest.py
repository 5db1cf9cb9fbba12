"""A remote that holds every connection until the crash has happened, and a relay that delivers to it."""

import asyncio
import smtplib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from tests.integration.conftest import sessions  # noqa: F401 - a fixture
from tests.support.relay_process import RelayProcess
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes

TEN_DAYS_US = 10 * 86400 * 1_000_000


@dataclass
class HeldRemote:
    """The remote greets nobody before open(), so no transaction can be cut off after its final dot."""

    remotes: Remotes
    remote: RemoteMx
    relay: RelayProcess
    gate: asyncio.Event = field(repr=False)

    def open(self) -> None:
        self.remotes.open_gate(self.gate)


@pytest.fixture
def held() -> Iterator[HeldRemote]:
    with Remotes() as remotes:
        gate = asyncio.Event()
        remote = remotes.start("a.test", gates={"CONNECT": gate})
        relay = remotes.relay()
        try:
            yield HeldRemote(remotes, remote, relay, gate)
        finally:
            relay.close()


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    """A relay that is not started yet."""
    made = RelayProcess()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def clients(number: int, send: Callable[[int], object], messages: int) -> Iterator[list[int]]:
    """So many clients send messages by their numbers, each until it is accepted; yield those that
    were. All have been sent at the end.
    """
    over, accepted = threading.Event(), list[int]()
    numbers = iter(range(messages))

    def work() -> None:
        for one in numbers:
            while not over.is_set():
                with suppress(OSError, smtplib.SMTPException, AssertionError, ValueError, KeyError):
                    send(one)
                    accepted.append(one)
                    break
                over.wait(0.05)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield accepted
        for thread in threads:
            thread.join()
    finally:
        over.set()
        for thread in threads:
            thread.join()


def make_too_old_to_send(relay: RelayProcess) -> None:
    """The name says since when it is ready. A key of that age may be forgotten, so it is never sent."""
    (pending,) = relay.pending_submissions()
    submission_id, _, ready_us = pending.name.partition("@")
    pending.rename(pending.with_name(f"{submission_id}@{int(ready_us) - TEN_DAYS_US}"))
