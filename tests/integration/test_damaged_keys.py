"""The records of idempotency keys are lost, cut, garbled or older than the spool: a real relay says so."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.graph_client import Answer, message
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until

DATA = 65


def remove(file: Path) -> None:
    file.unlink()


def garble(file: Path) -> None:
    octets = bytearray(file.read_bytes())
    for place in range(100, len(octets), 7):
        octets[place] ^= 0x5A
    file.write_bytes(octets)


def cut(file: Path) -> None:
    octets = file.read_bytes()
    file.write_bytes(octets[: len(octets) // 2])


DAMAGES = {
    "the log is removed": ("-wal", remove),
    "the log is garbled": ("-wal", garble),
    "the log is cut short": ("-wal", cut),
    "the database is removed": ("", remove),
    "the database is garbled": ("", garble),
}


def keys_file(relay: RelayProcess, suffix: str = "") -> Path:
    return relay.folder / f"mail/.submissions/keys.sqlite{suffix}"


def send(relay: RelayProcess, subject: str, key: str = "") -> Answer:
    body = {"message": message(subject=subject, to=["bob@example.test"])}
    headers = {"Idempotency-Key": key} if key else {}
    return relay.graph("POST", "/me/sendMail", body, headers=headers)


def readiness(relay: RelayProcess) -> tuple[int, bytes]:
    found = relay.request("GET", "/readyz")
    return found.status, found.body


@pytest.mark.parametrize("damage", sampled(DAMAGES))
def test_nothing_is_sent_twice_when_the_records_are_damaged(damage: str) -> None:
    suffix, spoil = DAMAGES[damage]
    with RelayProcess() as relay:
        for number in range(20):
            assert send(relay, f"{number}", f"key {number}".replace(" ", "-")).status == 202
        until("all are delivered", lambda: len(relay.subjects("bob")) == 20)
        if not suffix:  # its pages are in the log otherwise
            relay.stop()
            relay.start()
        relay.kill()
        spoil(keys_file(relay, suffix))
        relay.start()
        check_damaged(relay)
        relay.restart()
        check_damaged(relay)
        before = relay.subjects("bob")
        relay.stop()
        recovered = relay.cli("storage", "recover", "--keys")
        assert recovered.returncode == 0, recovered.stderr
        assert "kept as" in recovered.stdout
        aside = list(keys_file(relay).parent.glob("keys.sqlite.damaged-*"))
        assert aside
        relay.start()
        assert relay.log.count("idempotency keys unknown") == 1
        assert readiness(relay) == (200, b"ready\n")
        assert [send(relay, "new", "new").status for _ in range(2)] == [202, 202]
        until("it is delivered", lambda: len(relay.subjects("bob")) > len(before))
        assert sorted(relay.subjects("bob")) == sorted([*before, "new"])
        assert [one.exists() for one in aside] == [True] * len(aside)


def check_damaged(relay: RelayProcess) -> None:
    """Only requests with a key are refused."""
    refused = send(relay, "0", "key-0")
    assert (refused.status, refused.code) == (503, "ResourceUnhealthy")
    assert refused.message.startswith("Idempotency-Key: the relay's records of keys are damaged")
    assert "retry-after" in refused.headers
    arrived = len(relay.subjects("bob"))
    assert send(relay, "without").status == 202
    until("it is delivered", lambda: len(relay.subjects("bob")) == arrived + 1)
    assert relay.subjects("bob").count("0") == 1
    assert readiness(relay) == (200, b"ready; damaged-keys\n")
    assert "records of keys damaged" in relay.log
    verified = relay.cli("storage", "verify")
    assert verified.returncode == DATA
    assert "damaged-keys" in verified.stdout


def test_records_that_are_whole_are_left_alone() -> None:
    with RelayProcess() as relay:
        assert send(relay, "one", "key").status == 202
        relay.kill()
        assert relay.cli("storage", "verify").returncode == 0
        done = relay.cli("storage", "recover", "--keys")
        assert (done.returncode, done.stdout) == (
            0, "the records of keys are not damaged: nothing was done\n",
        )  # fmt: skip
        relay.start()
        assert send(relay, "one", "key").status == 202
        relay.stop()
        assert not keys_file(relay, ".last-commit").exists()
        relay.start()
        assert send(relay, "one", "key").status == 202
        until("it is delivered once", lambda: relay.subjects("bob") == ["one"])
        assert "keys unknown" not in relay.log


def test_recovery_is_refused_without_records_and_while_a_relay_runs() -> None:
    with RelayProcess() as relay:
        assert relay.cli("storage", "recover", "--keys").returncode == DATA
        assert send(relay, "one", "key").status == 202
        assert relay.cli("storage", "recover", "--keys").returncode != 0
        assert send(relay, "one", "key").status == 202


def restore_all(saved: Path, submissions: Path) -> None:
    shutil.rmtree(submissions)
    shutil.copytree(saved, submissions)


def restore_file(saved: Path, submissions: Path) -> None:
    shutil.copy2(saved / "keys.sqlite", submissions)


@pytest.mark.parametrize("restore", [restore_all, restore_file])
def test_records_older_than_the_spool_are_logged(
    tmp_path: Path, restore: Callable[[Path, Path], None]
) -> None:
    with RelayProcess() as relay:
        submissions = keys_file(relay).parent
        assert send(relay, "one", "key-1").status == 202
        until("it is delivered", lambda: relay.subjects("bob") == ["one"])
        relay.stop()
        shutil.copytree(submissions, tmp_path / "saved")
        relay.start()
        assert "keys unknown" not in relay.log
        assert send(relay, "two", "key-2").status == 202
        until("it is delivered", lambda: len(relay.subjects("bob")) == 2)
        relay.stop()
        restore(tmp_path / "saved", submissions)
        relay.start()
        [line] = [line for line in relay.log.splitlines() if "idempotency keys unknown" in line]
        assert "since" in line
        assert send(relay, "one", "key-1").status == 202
        assert send(relay, "three", "key-3").status == 202
        until("only the new one", lambda: len(relay.subjects("bob")) == 3)
        relay.restart()
        assert relay.log.count("idempotency keys unknown") == 1, "said once"
