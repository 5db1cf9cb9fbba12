"""A relay under pressure rejects new mail, delivers its queue, and accepts mail again by itself."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import disks
from tests.support.graph_client import message
from tests.support.logged_disk import LoggedDisk
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

GATE = True
MIB = 1 << 20
ALICE, BOB = "alice@example.test", "bob@example.test"
STRANGER = "127.0.0.2"
TEXT = b"Subject: x\r\n\r\nx\r\n"


@contextmanager
def state_on_a_disk_of_its_own(relay: RelayProcess, disk: Any) -> Iterator[Path]:
    """A relay whose state is there; it may be stopped and started within."""
    with disk:
        relay.start()
        yield relay.folder / "state"
        relay.stop()


def pressed(relay: RelayProcess, level: int, reason: str) -> None:
    """Wait until the pressure is at that level, for that reason alone."""
    until(
        f"{reason} is at {level}",
        lambda: (
            relay.metric("relay_pressure_reason", reason=reason) == level
            and relay.metric("relay_pressure_level") == level
        ),
    )


def mail_reply(relay: RelayProcess, *options: str, source: str = "127.0.0.1") -> str:
    """What a new session hears at MAIL, or at its beginning if that is a refusal."""
    try:
        with relay.smtp(source=source) as session:
            session.ehlo()
            code, text = session.mail(ALICE, options)
            return f"{code} {text.decode()}"
    except OSError as error:  # smtplib's own are among these
        return f"{error.smtp_code} {error.smtp_error.decode()}"  # type: ignore[attr-defined]


def refuses(relay: RelayProcess, words: str) -> None:
    """Every intake path rejects messages in its own way; reading works."""
    assert mail_reply(relay).startswith(f"452 4.3.1 No mail is taken now: {words}")
    assert mail_reply(relay, source=STRANGER).startswith("421 4.3.2 ")
    answer = relay.graph("POST", "/me/sendMail", {"message": message(to=[BOB])})
    assert (answer.status, answer.code) == (503, "ResourceUnhealthy")
    assert words in answer.message
    assert int(answer.headers["retry-after"]) > 0
    assert relay.graph("GET", "/me/messages").status == 200
    assert relay.graph("GET", "/relay/v1/queue", token="operator").status == 200
    assert relay.request("GET", "/healthz").status == 200
    ready = relay.request("GET", "/readyz")
    assert (ready.status, ready.body[:13]) == (200, b"ready; refuse")


def takes_mail(relay: RelayProcess, remote: Any) -> None:
    """New mail goes all the way, by HTTP and by SMTP, and nothing was lost."""
    relay.until_final(relay.send_mail(to=["again@a.test"]))
    relay.until_final(relay.submit(ALICE, ["behind@a.test"]))
    received(remote, "again@a.test")
    received(remote, "behind@a.test")
    assert mail_reply(relay, source=STRANGER).startswith("250 ")
    until("counted", lambda: relay.metric("relay_queue_unaccounted") == 0)
    assert relay.metric("relay_pressure_level") == 0


def in_a_moment() -> dict[str, Any]:
    """Deferred send, until the disk is full."""
    due = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    return {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": due}]}


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_spool_disk_rejects_new_mail_and_delivers_the_queue(
    remotes: Remotes, kind: str, serve
) -> None:
    rcpt = {f"r{number}@a.test": ["451 4.2.0 later", "250 ok"] for number in range(8)}
    rcpt |= {"no@a.test": ["451 4.2.0 later", "550 5.1.1 nobody"]}
    remote = remotes.start("a.test", rcpt=rcpt)
    relay = serve(remotes, start=False, config={"delivery": {"retry": ["1s"]}})
    place = relay.folder / "state"
    disk = (disks.small_disk if kind == "tmpfs" else disks.journaled_disk)(
        place, size_bytes=32 * MIB
    )
    with state_on_a_disk_of_its_own(relay, disk):
        assert (place / "ballast").stat().st_size > MIB // 2
        waiting = [relay.submit(ALICE, [address], TEXT * 900) for address in rcpt]
        soon = relay.send_mail(to=[BOB], subject="soon", **in_a_moment())
        with disks.filled(place):
            pressed(relay, 2, "spool-disk")
            refuses(relay, "the queue's disk is nearly full")
            for queue_id in waiting:  # delivery goes on, with the report about no@
                relay.until_final(queue_id)
            until("the report", lambda: any("Undel" in one for one in relay.subjects("alice")))
            until("pickup asked", lambda: "submission deferred" in relay.log)
            assert relay.journey(soon)["state"] == "converting"
        pressed(relay, 0, "spool-disk")
        relay.until_final(soon)
        assert relay.subjects("bob") == ["soon"]
        for address in rcpt.keys() - {"no@a.test"}:
            received(remote, address)
        takes_mail(relay, remote)
        until("the reserve file", (place / "ballast").exists)
        assert [one for one in relay.faults() if "spool cannot settle" in one] == []


def test_a_spool_disk_that_fails_during_delivery_repeats_the_attempt(
    remotes: Remotes, tmp_path: Path, serve
) -> None:
    """The kernel makes it read-only at a fault; the operator mounts it again and starts the relay."""
    gate = remotes.gate()
    remote = remotes.start("a.test", gates={"DOT": gate})
    relay = serve(remotes, start=False, config={"delivery": {"shutdown_grace": "0.2s"}})
    image = tmp_path / "image"
    image.write_bytes(b"\0" * 16 * MIB)
    disks.make_ext4(image)
    with state_on_a_disk_of_its_own(relay, disks.mounted(image, relay.folder / "state")) as place:
        taken = relay.submit(ALICE, ["kept@a.test"])
        until("it is being sent", lambda: remote.envelopes)
        disks.break_off(place)
        remotes.open_gate(gate)
        until("the attempt is not recorded", lambda: "spool cannot settle" in relay.log)
        pressed(relay, 2, "spool-disk")
        refuses(relay, "the queue's disk is nearly full or cannot be written")
    with state_on_a_disk_of_its_own(relay, disks.mounted(image, relay.folder / "state")):
        journey = relay.until_final(taken)
        (recipient,) = journey["recipients"]
        outcomes = [one["outcome"] for one in recipient["attempts"]]
        assert outcomes == ["indeterminate", "relayed"]
        takes_mail(relay, remote)


def test_a_hanging_spool_disk_rejects_new_mail(remotes: Remotes, tmp_path: Path, serve) -> None:
    remote = remotes.start("a.test")
    relay = serve(remotes, start=False, config={"pressure": {"commit_latency": "1s"}})
    with LoggedDisk(tmp_path, size_bytes=24 * MIB) as disk:
        disks.make_ext4(disk.file)
        place = relay.folder / "state"
        with state_on_a_disk_of_its_own(relay, disks.mounted(disk.file, place)):
            relay.until_final(relay.submit(ALICE, ["before@a.test"]))
            with ThreadPoolExecutor() as clients:
                with disk.hanging():
                    begun = [
                        clients.submit(relay.submit, ALICE, [f"{number}@a.test"])
                        for number in range(4)
                    ]
                    pressed(relay, 2, "commits")
                    refuses(relay, "the queue's disk is too slow")
                    assert not any(one.done() for one in begun)
                for one in begun:  # its commit is durable now, and nobody hears it before
                    relay.until_final(one.result(20))
            for number in range(4):
                received(remote, f"{number}@a.test")
            pressed(relay, 0, "commits")
            takes_mail(relay, remote)


def test_a_full_mail_disk_rejects_drafts_and_defers_local_delivery(remotes: Remotes, serve) -> None:
    remote = remotes.start("a.test")
    relay = serve(remotes, start=False)
    with disks.small_disk(relay.folder / "mail", size_bytes=4 * MIB):
        relay.start()
        draft = relay.graph("POST", "/me/messages", message(to=[BOB])).json()["id"]
        with disks.filled(relay.folder / "mail"):
            pressed(relay, 2, "mail-disk")
            for path, body in [
                ("/me/sendMail", {"message": message(to=[BOB])}),
                (f"/me/messages/{draft}/send", None),
                ("/me/messages", message(to=[BOB])),
            ]:
                answer = relay.graph("POST", path, body)
                assert (answer.status, answer.code) == (507, "ErrorInsufficientResources")
                assert int(answer.headers["retry-after"]) > 0
            assert relay.graph("GET", f"/me/messages/{draft}").status == 200
            assert relay.graph("DELETE", f"/me/messages/{draft}").status == 204
            relay.until_final(relay.submit(ALICE, ["through@a.test"]))  # it needs no mailbox
            waits = relay.submit(ALICE, [BOB])
            relay.until_state(waits, "deferred")
        relay.until_final(waits)
        pressed(relay, 0, "mail-disk")
        received(remote, "through@a.test")
        takes_mail(relay, remote)
        relay.stop()


def test_a_full_queue_rejects_new_mail(remotes: Remotes, serve) -> None:
    rcpt = {f"r{number}@a.test": "451 4.2.0 later" for number in range(3)}
    remote = remotes.start("a.test", rcpt=rcpt)
    relay = serve(remotes, config={"pressure": {"queue_entries": 3}})
    waiting = [relay.submit(ALICE, [address]) for address in rcpt]
    pressed(relay, 2, "queue")
    refuses(relay, "the queue is full")
    remote.rcpt = dict.fromkeys(rcpt, "250 ok")
    for queue_id in waiting:
        relay.until_final(queue_id)
    pressed(relay, 0, "queue")
    takes_mail(relay, remote)
