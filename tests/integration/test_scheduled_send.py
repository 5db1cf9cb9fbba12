"""Scheduled send and the options of step 4 through a running relay."""

import http.client
import re
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.disks import filled, small_disk
from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes
from tests.support.tables import each_row

PROPERTY = "SystemTime 0x3FEF"
HOUR = timedelta(hours=1)


def single(**properties: str | None) -> dict[str, Any]:
    return {"singleValueExtendedProperties": [{"id": k, "value": v} for k, v in properties.items()]}


def later(wait: timedelta) -> dict[str, Any]:
    return single(**{PROPERTY: (datetime.now(UTC) + wait).isoformat()})


def test_a_scheduled_message_is_sent_at_its_time_and_not_before(relay: RelayProcess) -> None:
    """The message is due in an hour; a PATCH then gives it an earlier time."""
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="earlier"))
    identity = relay.send_mail(to=["bob@example.test"], subject="later", **later(HOUR))
    assert relay.journey("alice@example.test")["subject"] == "later"
    until("it is counted", lambda: relay.metric("relay_pickup_deferred") == 1)
    journey = relay.journey(identity)
    assert journey["state"] == "scheduled"
    client = {"address": "127.0.0.1", "helo": "", "account": "alice@example.test", "tls": ""}
    assert journey["client"] == client
    (recipient,) = journey["recipients"]
    assert (recipient["state"], recipient["reply"]) == ("queued", "")
    at = recipient["next_attempt"]
    answer = relay.cli("trace", identity).stdout.splitlines()[0]
    assert re.search(rf", (\S+ )?{at[11:16]} UTC, in (59 min|1 h)\.$", answer), answer
    listed = relay.cli("queue", "list").stdout.splitlines()
    assert listed[-1] == "and 1 scheduled, 0 converting"
    expand = (
        f"$expand=singleValueExtendedProperties($filter=id%20eq%20'{PROPERTY.replace(' ', '%20')}')"
    )
    shown = relay.graph("GET", f"/me/messages/{identity}?{expand}").json()
    assert shown["isDraft"]
    assert shown["singleValueExtendedProperties"][0]["id"] == "SystemTime 0x3fef"
    assert relay.subjects("bob").count("later") == 0
    changed = relay.graph("PATCH", f"/me/messages/{identity}", later(timedelta(seconds=0.2)))
    assert changed.status == 200, changed.body
    assert relay.until_final(identity)["client"] == client
    assert relay.subjects("bob").count("later") == 1
    until(
        "it is filed",
        lambda: relay.graph("GET", f"/me/messages/{identity}").json()["isDraft"] is False,
    )


def test_a_day_of_the_log_stays_while_a_message_of_it_waits_or_has_a_history(serve) -> None:
    relay = serve()

    def is_pruned(age: str) -> bool:
        assert relay.cli("storage", "prune", "--older-than", age).returncode == 0
        return not day.exists()

    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="now"))
    (today,) = (relay.folder / "mail/.submissions/log").iterdir()
    day = today.rename(today.with_name("2020-01-01-relay"))
    assert not is_pruned("1d")
    identity = relay.send_mail(to=["bob@example.test"], subject="later", **later(HOUR))
    assert not is_pruned("0s")
    assert relay.cli("queue", "cancel", identity).returncode == 0
    assert is_pruned("0s")


@pytest.mark.parametrize(
    ("place", "written", "damaged"),
    [
        ("deferred", b'"account":"alice@', b'"account":"blice@'),
        ("ready", b"X-Relay-Draft", b"X-Relay-Drift"),
    ],
)
def test_a_damaged_record_is_reported_to_the_account_in_the_log(
    relay: RelayProcess, place: str, written: bytes, damaged: bytes
) -> None:
    """With what can be read of the message; nobody else learns of it."""
    subject = f"damaged {uuid4().hex}"
    identity = relay.send_mail(to=["bob@example.test"], subject=subject, **later(HOUR))
    until("it waits", relay.scheduled_submissions)
    relay.stop()
    (file,) = relay.scheduled_submissions()
    content = file.read_bytes()
    assert written in content
    file.write_bytes(content.replace(written, damaged))
    now_us = time.time_ns() // 1000
    file.rename(file.parent.parent / place / f"{file.name.partition('@')[0]}@{now_us}")
    relay.start()
    assert relay.until_final(identity)["state"] == "failed"
    until("it is reported", lambda: not relay.scheduled_submissions() + relay.pending_submissions())
    (report,) = [one for one in relay.maildir("alice") if subject in one["Subject"]]
    about, returned = report.get_payload()[1:]
    assert "Final-Recipient: rfc822;bob@example.test" in about.as_string()
    assert "Subject: damaged" in returned.as_string()
    assert "X-Relay-" not in returned.as_string()
    trace = relay.cli("trace", identity).stdout
    assert "5.0.0 its record on the disk is damaged" in trace.splitlines()[0]
    assert [*(relay.folder / "mail/.submissions/corrupt").glob(f"{identity}.*")]
    assert subject not in relay.subjects("bob")
    assert {one.name for one in relay.home("alice").parent.iterdir()} <= {"alice", "bob", "carol"}


@each_row("by", ["DELETE", "move", "PATCH", "mail client"])
def test_a_scheduled_message_is_cancelled(relay: RelayProcess, by: str) -> None:
    identity = relay.send_mail(to=["bob@example.test"], subject=by, **later(HOUR))
    path = f"/me/messages/{identity}"
    if by == "DELETE":
        assert relay.graph("DELETE", path).status == 204
    elif by == "move":
        assert relay.graph("POST", f"{path}/move", {"destinationId": "archive"}).status == 201
    elif by == "PATCH":
        assert relay.graph("PATCH", path, single(**{PROPERTY: None})).status == 200
    else:
        relay.graph("PATCH", path, later(timedelta(seconds=0.5)))
        (file,) = (relay.folder / "mail/example.test/alice/.Drafts/cur").glob(f"*R{identity}_*")
        file.unlink()
    until("it is cancelled", lambda: relay.journey(identity)["state"] == "cancelled")
    until("its submission is removed", lambda: not relay.scheduled_submissions())
    assert "cancelled" in relay.cli("trace", identity).stdout
    assert by not in relay.subjects("bob")


def submissions(relay: RelayProcess, *selectors: str) -> list[tuple[str, str, str]]:
    """The state, reason and id of each that `queue list` shows."""
    rows = relay.cli_json("queue", "list", *selectors)
    return [(row["state"], row["reason"], row["id"]) for row in rows]


def changed(relay: RelayProcess, *words: str) -> list[tuple[str, str]]:
    """The result and note of each that a command has changed."""
    return [(row["result"], row["note"]) for row in relay.cli_json("queue", *words)]


@each_row("is_removed", [False, True])
def test_mail_of_an_account_that_is_disabled_or_removed_waits_for_an_operator(
    serve, is_removed: bool
) -> None:
    """For a release, whatever the account is then; it is not reported, and nobody changes it."""
    relay = serve().restart(crash_at=CrashPoint.SUBMISSION_DUE)
    identity = relay.send_mail(to=["bob@example.test"], subject="prize", **later(HOUR))
    with suppress(OSError, http.client.HTTPException):
        relay.graph("PATCH", f"/me/messages/{identity}", later(timedelta(seconds=-1)))
    relay.wait_end()
    file = relay.folder / "accounts.toml"
    text = file.read_text()
    alice = 'address = "alice@example.test"\n'
    if is_removed:
        assert relay.cli("account", "remove", "alice@example.test").returncode == 0
    else:
        file.write_text(text.replace(alice, f"{alice}disabled = true\n"))
    relay.start()
    held = ("held", "account", f"{identity}.1")
    relay.until_state(identity, "held")
    assert submissions(relay, "--state", "held") == [held]
    assert submissions(relay) == submissions(relay, "--older-than", "0s") == []
    assert relay.cli("queue", "list").stdout.endswith("0 scheduled, 0 converting, 1 held\n")
    assert "Held by account; it stays until" in relay.cli("trace", identity).stdout
    assert relay.cli("queue", "release", "--restored").returncode == 0
    assert submissions(relay, identity) == [held]
    file.write_text(text)
    assert relay.cli("reload").returncode == 0
    for change in (("PATCH", {"subject": "other"}), ("DELETE", None)):
        assert relay.graph(change[0], f"/me/messages/{identity}", change[1]).status == 409
    assert relay.maildir("bob") + relay.maildir("alice") == []
    assert relay.cli("account", "remove", "alice@example.test").returncode == 0
    assert relay.cli("reload").returncode == 0
    assert changed(relay, "release", identity) == [("done", "")]
    until("it arrives", lambda: relay.subjects("bob") == ["prize"])
    until("it is filed", lambda: relay.subjects("alice", "Sent") == ["prize"])
    assert submissions(relay, "--state", "held") == relay.scheduled_submissions() == []


def test_queue_commands_hold_release_and_cancel_scheduled_sends(relay: RelayProcess) -> None:
    subject = uuid4().hex
    identity = relay.send_mail(to=["bob@example.test"], subject=subject, **later(HOUR))
    message_id = relay.journey(identity)["message_id"]
    submission_id = f"{identity}.1"
    assert submissions(relay, message_id) == [("scheduled", "", submission_id)]
    hold = ("hold", "--subject", f"*{subject}*", "--login", "alice@*", "--reason", "thief")
    assert changed(relay, *hold, "--dry-run") == [("done", "")]
    assert relay.cli_json("queue", "show", identity)["entries"][0]["state"] == "scheduled"
    assert changed(relay, *hold, "--until", "1h")[0][0] == "unchanged"
    assert changed(relay, *hold) == [("done", "")]
    ((state, reason, _),) = submissions(relay, submission_id)
    assert (state, reason.partition(": ")[2]) == ("held", "thief")
    assert relay.graph("PATCH", f"/me/messages/{identity}", later(2 * HOUR)).status == 409
    for words in (("retry", identity), ("reroute", identity, "--to", "mx")):
        refused = relay.cli("queue", *words)
        assert (refused.returncode, "not in the queue yet" in refused.stderr) == (64, True)
    assert changed(relay, "release", f"{submission_id}-0") == [("done", "")]
    assert submissions(relay, identity) == [("scheduled", "", submission_id)]
    assert changed(relay, "cancel", "--domain", "*.test", "--subject", subject) == [
        ("done", "its draft stays in Drafts")
    ]
    assert relay.journey(identity)["state"] == "cancelled"
    assert relay.cli("queue", "cancel", identity).returncode == 65


def test_a_full_disk_leaves_scheduled_messages_unchanged(remotes: Remotes) -> None:
    with remotes.relay() as relay:
        relay.stop()
        with small_disk(relay.folder / "mail", size_bytes=1024 * 1024):
            relay.adopt_mail_root()
            relay.start()
            identity = relay.send_mail(to=["bob@example.test"], subject="first", **later(HOUR))
            with filled(relay.folder / "mail"):
                for changes in ({"subject": "second"}, later(2 * HOUR)):
                    answer = relay.graph("PATCH", f"/me/messages/{identity}", changes)
                    assert answer.status in (503, 507), answer.body
                body = {"message": message(to=["bob@example.test"]) | later(HOUR)}
                assert relay.graph("POST", "/me/sendMail", body).status in (503, 507)
                assert relay.pending_submissions() == []
                assert len(relay.scheduled_submissions()) == 1
            now = later(timedelta(seconds=-1))
            assert relay.graph("PATCH", f"/me/messages/{identity}", now).status == 200
            relay.until_final(identity)
            until("it is filed", lambda: relay.subjects("alice", "Sent") == ["first"])
            assert relay.subjects("bob") == ["first"]
            relay.stop()
            relay.start()  # close() asks it, on a folder that is there
