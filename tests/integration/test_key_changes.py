"""SIGHUP reads the keys that sign again: all of them or none, and no message goes out unsigned meanwhile."""

import itertools
import json
import smtplib
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.test_reload import hang_up
from tests.support.dkim import DkimKeys, signatures, verified
from tests.support.in_thread import in_threads
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes

SENDER = "alice@example.test"
SENDERS = 4
RELOADED, KEPT = '"event":"reloaded"', "the previous configuration stays active"


@pytest.fixture(scope="module")
def remotes(remotes_module) -> Remotes:
    remotes_module.start("a.test")
    return remotes_module


class Recipients:
    """A new recipient for each message, so that each is found."""

    def __init__(self, remotes: Remotes) -> None:
        self._server: RemoteMx = remotes.servers[0]
        self._numbers = itertools.count()

    def new(self) -> str:
        return f"x{next(self._numbers)}@a.test"

    def content(self, address: str) -> bytes:
        """What arrives for a recipient."""
        [found] = until(f"mail for {address}", lambda: self._server.received(address))
        return found.content

    def sent(self, relay: RelayProcess) -> bytes:
        """Send a message; return what arrives."""
        address = self.new()
        relay.submit(SENDER, [address], f"From: {SENDER}\r\nSubject: x\r\n\r\nx\r\n".encode())
        return self.content(address)


@pytest.fixture
def recipients(remotes: Remotes) -> Iterator[Recipients]:
    yield Recipients(remotes)
    remotes.servers[0].envelopes.clear()


def keys_in(folder: Path, *selectors: str) -> DkimKeys:
    """Keys of example.test, of both kinds in turn."""
    kinds = itertools.cycle(("ed25519", "rsa"))
    return DkimKeys.made(folder, {("example.test", one): next(kinds) for one in selectors})


def reload_with(
    relay: RelayProcess, entries: list[dict[str, str]], outcome: str = RELOADED
) -> None:
    relay.write_config(relay.config | ({"dkim": entries} if entries else {}))
    hang_up(relay, outcome)


def test_keys_are_added_changed_and_removed(remotes, recipients, tmp_path, serve):
    keys = keys_in(tmp_path, "s1", "s2")
    first, second = keys.config["dkim"]
    relay = serve(remotes, config={})
    steps = [
        ([], []),
        ([first], ["s1"]),
        ([first, second], ["s1", "s2"]),
        ([second], ["s2"]),
        ([first | {"selector": "s3"}], ["s3"]),
        ([first | {"until": "2020-01-01"}, second], ["s2"]),
        ([first | {"until": "2020-01-01"}], []),
        ([], []),
    ]
    records = keys.records | {
        "s3._domainkey.example.test": keys.records["s1._domainkey.example.test"]
    }
    for entries, selectors in steps:
        reload_with(relay, entries)
        found = verified(recipients.sent(relay), records)
        assert found == [("example.test", one) for one in selectors]
    assert relay.faults() == []


def test_the_end_of_the_last_key_is_logged_at_a_start(remotes, recipients, tmp_path, serve):
    [key] = keys_in(tmp_path, "s1").config["dkim"]
    relay = serve(remotes, config={"dkim": [key | {"until": "2020-01-01"}]})
    until("a warning", lambda: "the last signing key of a domain has ended" in relay.log)
    assert '"domain":"example.test"' in relay.log
    assert signatures(recipients.sent(relay)) == 0


def test_a_bad_file_changes_nothing_and_the_log_says_why(remotes, recipients, tmp_path, serve):
    keys = keys_in(tmp_path, "s1", "s2")
    first, second = keys.config["dkim"]
    file = keys.ring.keys[1].file
    relay = serve(remotes, config={"dkim": [first]})

    def fault_with(*entries: dict[str, str]) -> str:
        """The fault of a reload with these entries."""
        before = len(faults_of_reloads(relay))
        reload_with(relay, list(entries), KEPT)
        assert verified(recipients.sent(relay), keys.records) == [("example.test", "s1")]
        [fault] = faults_of_reloads(relay)[before:]
        return fault.removeprefix(f"{relay.config_file}:")

    for spoil, found in (
        (lambda: file.chmod(0o644), "found mode 0644"),
        (lambda: file.write_text(""), "found mode 0644"),
        (lambda: file.chmod(0o600), "found no key"),
        (file.unlink, "found no such file"),
    ):
        spoil()
        fault = fault_with(first, second)
        line = relay.config_file.read_text().splitlines().index(f'key = "{file}"') + 1
        assert fault.startswith(f"{line}: dkim[1].key: {file}: {found}, expected ")
    fault = fault_with(first, first)
    assert 'dkim[1].selector: found "s1", expected a selector of its own for example.t' in fault


def faults_of_reloads(relay: RelayProcess) -> list[str]:
    lines = [json.loads(one) for one in relay.log.splitlines()]
    return [one["fault"] for one in lines if one["event"] == "not reloaded"]


@pytest.mark.parametrize(
    ("messages", "reloads"), [(100, 4), pytest.param(2000, 10, marks=long)], ids=["short", "long"]
)
def test_a_key_change_under_load_leaves_no_message_unsigned(
    remotes, recipients, tmp_path, messages, reloads, serve
):
    keys = keys_in(tmp_path, *(f"s{number}" for number in range(reloads + 1)))
    entries = keys.config["dkim"]
    requested, in_force, failures = 0, 0, []
    answered: list[tuple[str, int, int]] = []  # the first and the last key that may have signed
    is_over = threading.Event()

    def send(relay: RelayProcess) -> None:
        try:
            with relay.smtp() as session:
                session.ehlo()
                while not is_over.is_set():
                    address, first = recipients.new(), in_force
                    content = f"From: {SENDER}\r\nSubject: {address}\r\n\r\nhello\r\n"
                    session.sendmail(SENDER, [address], content)
                    answered.append((address, first, requested))
        except (OSError, smtplib.SMTPException) as error:
            failures.append(error)

    relay = serve(remotes, config={"dkim": entries[:1]})
    with in_threads([partial(send, relay)] * SENDERS, over=is_over):
        for number in range(1, reloads + 1):
            part = number * messages // (reloads + 1)
            until("mail is sent", lambda part=part: failures or len(answered) >= part)
            requested = number
            reload_with(relay, entries[number : number + 1])
            in_force = number
        until("all is sent", lambda: failures or len(answered) >= messages)
    assert failures == []
    used = set()
    for address, first, last in answered:
        [(_, selector)] = verified(recipients.content(address), keys.records)
        number = int(selector.removeprefix("s"))
        assert first <= number <= last
        used.add(number)
    assert used == set(range(reloads + 1))
    assert len(answered) >= messages
    assert relay.faults() == []
    signed = relay.metric("relay_dkim_signatures_total", result="signed")
    assert signed == len(answered)
