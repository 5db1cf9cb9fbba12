"""Large bodies, the commands while the service runs and while it is stopped, and pruning."""

from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.reports import report_about

OK = 0
HOURLY = {"delivery": {"retry": ["1h"]}}


def until_counted(relay: RelayProcess) -> None:
    """All recipients are accounted for, and the relay found no fault of its own."""
    until("the queue is counted as empty", lambda: relay.metric("relay_queue_entries") == 0)
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults() == []


def test_large_mail_by_smtp_survives_a_kill(remotes: Remotes, sql, serve) -> None:
    """Local and remote delivery, a bounce, and a body that is read again from the database."""
    rcpt = {"x@a.test": "450 4.2.0 later", "nobody@a.test": "550 5.1.1 no such user"}
    mx = remotes.start("a.test", rcpt=rcpt)
    lines = b"".join(b"%07d ..............................\r\n" % n for n in range(60_000))
    content = b"Subject: kept\r\n\r\n" + lines
    relay = serve(remotes, config=HOURLY)
    queue_id = relay.submit("alice@example.test", ["bob@example.test", "x@a.test"], content)
    bounced = relay.submit("alice@example.test", ["nobody@a.test"])
    relay.until_state(queue_id, "deferred")
    relay.until_final(bounced)
    report = report_about(relay, "nobody@a.test")
    assert report.recipients["nobody@a.test"]["action"] == "failed"
    assert sql(relay, "SELECT count(DISTINCT id) FROM body") == "1"
    mx.rcpt.clear()
    relay.restart()
    assert relay.cli("queue", "retry", queue_id).returncode == OK
    relay.until_final(queue_id)
    assert received(mx, "x@a.test").content.endswith(lines)
    (copy,) = [one for one in relay.maildir("bob") if one["subject"] == "kept"]
    assert len(bytes(copy)) > len(lines) * 0.9
    journey = relay.journey(queue_id)
    assert {one["address"]: one["state"] for one in journey["recipients"]} == {
        "bob@example.test": "delivered",
        "x@a.test": "relayed",
    }
    until("no part is left", lambda: sql(relay, "SELECT count(*) FROM body") == "0")
    until_counted(relay)


def test_pruning_and_a_new_mail_root(remotes: Remotes, serve) -> None:
    relay = serve(remotes)
    sent = relay.until_final(relay.send_mail(to=["bob@example.test"]))["id"]
    assert "removed 0 messages" in relay.cli("storage", "prune").stdout  # spool.keep is 14 days
    pruned = relay.cli("storage", "prune", "--older-than", "0s", "--dry-run")
    assert (pruned.returncode, "1 message" in pruned.stdout) == (OK, True), pruned.stdout
    assert relay.cli("storage", "prune", "--older-than", "0s").returncode == OK
    assert relay.stop() == OK
    (relay.folder / "mail").rename(relay.folder / "mail-of-before")
    (relay.folder / "mail").mkdir(mode=0o700)
    relay.adopt_mail_root()
    relay.start()
    assert relay.graph("GET", f"/relay/v1/messages/{sent}", token="operator").status == 404
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="after"))
    assert relay.subjects("bob") == ["after"]
