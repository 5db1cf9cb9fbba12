"""SIGHUP reads the keys that sign again: all of them or none, and no message goes out unsigned meanwhile."""

import itertools
import json
import signal
import smtplib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.test_reload import hang_up
from tests.support.dkim import DkimKeys, signatures, verified
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


def entry(selector: str, file: Path) -> dict[str, str]:
    return {"domain": "example.test", "selector": selector, "key": str(file)}


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


def test_a_command_without_a_relay_names_a_bad_key_file_and_changes_nothing(
    remotes, tmp_path, serve
):
    """A cancel may owe a report, which the key signs."""
    [key] = keys_in(tmp_path, "s1").config["dkim"]
    relay = serve(remotes, config={"dkim": [key]})
    remotes.dns.zone["silent.test"] = "SERVFAIL"
    queue_id = relay.submit(SENDER, ["x@silent.test"])
    relay.until_state(queue_id, "deferred")
    relay.stop()
    Path(key["key"]).write_text("")
    done = relay.cli("queue", "cancel", queue_id)
    assert (done.returncode, done.stderr[: len(key["key"])]) == (78, key["key"])
    assert "found no key, expected an RSA key" in done.stderr
    assert len(relay.cli_json("queue", "list")) == 1


@pytest.mark.parametrize("way", ["renamed", "truncated and written"])
def test_a_key_file_that_is_replaced_during_a_reload_gives_the_old_or_the_new_key(
    remotes, recipients, tmp_path, way, serve
):
    """Two selectors share the file, so a mixture of keys shows in one message."""
    file = tmp_path / "shared.pem"
    texts, records = [], []
    for first in range(2):
        made = DkimKeys.made(tmp_path, {("example.test", "s1"): "rsa"}, first=first)
        texts.append(made.ring.keys[0].file.read_bytes())
        [record] = made.records.values()
        names = [f"{one}._domainkey.example.test" for one in ("s1", "s2")]
        records.append(dict.fromkeys(names, record))
    file.write_bytes(texts[0])
    file.chmod(0o600)
    is_over = threading.Event()

    def replace() -> None:
        part = tmp_path / "part.pem"
        for text in itertools.cycle(texts):
            if is_over.is_set():
                return
            if way == "renamed":
                part.write_bytes(text)
                part.chmod(0o600)
                part.replace(file)
            else:
                with file.open("wb", buffering=0) as stream:
                    half = len(text) // 2
                    stream.write(text[:half])
                    stream.write(text[half:])

    replacing = threading.Thread(target=replace)
    relay = serve(remotes, config={"dkim": [entry("s1", file), entry("s2", file)]})

    def reloads() -> bool:
        """Reload, and look by which key the next message is signed; return whether it was read."""
        before = len(outcomes(relay))
        relay.process.send_signal(signal.SIGHUP)
        until("the end of the reload", lambda: len(outcomes(relay)) > before)
        content = recipients.sent(relay)
        assert [signed_by(content, one) for one in records].count(True) == 1
        return RELOADED in outcomes(relay)[-1]

    replacing.start()
    try:
        found = {reloads() for _ in range(8)}
        if way == "renamed":
            assert found == {True}
        else:
            until("a complete file is read", reloads)
    finally:
        is_over.set()
        replacing.join()
    for one in relay.faults():
        assert KEPT in one or "found no key" in one or "no private key that can be read" in one


def outcomes(relay: RelayProcess) -> list[str]:
    return [one for one in relay.log.splitlines() if RELOADED in one or KEPT in one]


def signed_by(content: bytes, records: Mapping[str, bytes]) -> bool:
    """Whether both signatures are of the key that has these records."""
    try:
        return verified(content, records) == [("example.test", "s1"), ("example.test", "s2")]
    except AssertionError:
        return False


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
    threads = [threading.Thread(target=send, args=(relay,)) for _ in range(SENDERS)]
    for one in threads:
        one.start()
    try:
        for number in range(1, reloads + 1):
            part = number * messages // (reloads + 1)
            until("mail is sent", lambda part=part: failures or len(answered) >= part)
            requested = number
            reload_with(relay, entries[number : number + 1])
            in_force = number
        until("all is sent", lambda: failures or len(answered) >= messages)
    finally:
        is_over.set()
        for one in threads:
            one.join()
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
