"""`relay pause` and `relay resume`: what a node does not do, what it does, and over restarts."""

from tests.support.disks import filled, small_disk
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

ALICE, STRANGER = "alice@example.test", "127.0.0.2"
USAGE, CONFIGURATION = 64, 78


def readiness(relay: RelayProcess) -> tuple[int, str]:
    answer = relay.request("GET", "/readyz")
    return answer.status, answer.body.decode()


def test_a_pause_of_delivery_keeps_mail_in_the_queue_over_a_restart(
    remotes: Remotes, serve
) -> None:
    mx = remotes.start("a.test")
    relay = serve(remotes)
    paused = relay.cli("pause", "delivery")
    assert paused.stdout.startswith("delivery is paused by "), paused.stderr
    ids = [relay.submit(ALICE, ["x@a.test"]), relay.submit(ALICE, ["bob@example.test"])]
    status, text = readiness(relay)
    assert (status, text.startswith("ready; delivery is paused by ")) == (200, True)
    assert [relay.metric("relay_paused", what=x) for x in ("delivery", "accept")] == [1, 0]
    assert relay.stop() == 0
    assert "paused       delivery is paused by " in relay.cli("queue", "stats").stdout
    relay.start()
    assert readiness(relay)[1].startswith("ready; delivery is paused by ")
    ids.append(relay.submit(ALICE, ["y@a.test"]))
    assert "Nothing is delivered on this node: delivery is paused by " in (
        relay.cli("queue", "retry", "--all").stderr
    )
    assert "\nNothing is delivered on this node: delivery is paused by " in (
        relay.cli("trace", ids[-1]).stdout
    )
    assert "paused       delivery is paused by " in relay.cli("queue", "stats").stdout
    assert "  pause   Nothing is delivered on this node" in (
        relay.cli("explain", "x@a.test").stdout
    )
    assert [one["state"] for one in relay.queue()] == ["queued"] * len(ids)
    assert mx.envelopes == []
    assert relay.cli("resume").stdout == "resumed: delivery\n"
    assert relay.cli("resume").stdout == "nothing is paused\n"
    for queue_id in ids:
        relay.until_final(queue_id)
    received(mx, "x@a.test")
    received(mx, "y@a.test")
    assert "Nothing is delivered" not in relay.cli("trace", ids[-1]).stdout
    assert "Nothing is delivered" not in relay.cli("explain", "x@a.test").stdout
    assert readiness(relay) == (200, "ready\n")


def test_a_pause_of_acceptance_refuses_by_smtp_and_http_and_delivers(
    remotes: Remotes, serve
) -> None:
    gate = remotes.gate()
    mx = remotes.start("a.test", gates={"DOT": gate})
    relay = serve(remotes)
    queued = relay.submit(ALICE, ["x@a.test"])
    remotes.run(mx.reached("DOT"))
    with relay.smtp() as session, relay.smtp() as idle:
        session.ehlo()
        idle.ehlo()
        session.mail(ALICE)
        session.rcpt("bob@example.test")
        answer = relay.graph(
            "POST", "/relay/v1/pause", {"what": "accept", "until": "2h"}, token=OPERATOR
        )
        assert answer.status == 200, answer.body
        assert answer.json()["delivery"] is None
        assert answer.json()["accept"]["who"] == "operator@example.test"
        code, text = session.data(b"Subject: begun before\r\n\r\nx\r\n")
        assert code == 250, text
        assert idle.mail(ALICE)[0] == 421
    for source in ("127.0.0.1", STRANGER):
        try:
            relay.smtp(source=source).close()
        except OSError as error:
            reply = f"{error.smtp_code} {error.smtp_error.decode()}"  # type: ignore[attr-defined]
        assert reply.startswith("421 4.3.2 This server takes no mail at present")
    mail = {"message": {"subject": "x", "toRecipients": [{"emailAddress": {"address": ALICE}}]}}
    sent = relay.graph("POST", "/me/sendMail", mail)
    assert (sent.status, sent.code) == (503, "ResourceUnhealthy")
    assert "Accepting mail is paused by operator@example.test since " in sent.message
    assert int(sent.headers["retry-after"]) > 0
    assert relay.graph("GET", "/me/messages").status == 200
    assert relay.graph("GET", "/relay/v1/queue", token=OPERATOR).status == 200
    status, text = readiness(relay)
    assert (status, text.startswith("accepting mail is paused by ")) == (503, True)
    asked = relay.cli("ready")
    assert (asked.returncode, asked.stderr) == (75, f"relay: {text}")
    assert relay.metric("relay_paused", what="accept") == 1
    remotes.open_gate(gate)
    relay.until_final(queued)
    until("begun before", lambda: "begun before" in relay.subjects("bob"))
    assert relay.stop() == 0
    relay.start()
    assert readiness(relay)[0] == 503
    assert relay.cli("resume", "accept").stdout == "resumed: accept\n"
    assert relay.graph("POST", "/me/sendMail", mail).status == 202
    assert readiness(relay) == (200, "ready\n")


def test_a_relay_that_does_not_run_is_paused_for_its_start(remotes: Remotes) -> None:
    relay = remotes.relay()
    paused = relay.cli("pause", "delivery")
    assert paused.stdout.startswith("delivery is paused by "), paused.stderr
    both = relay.cli("pause", "accept", "--until", "2h", "--json")
    assert both.returncode == 0, both.stderr
    assert "Error: --until: found 'x'" in relay.cli("pause", "accept", "--until", "x").stderr
    assert relay.cli("resume", "accept").stdout == f"resumed: accept\n{paused.stdout}"
    with relay:
        assert readiness(relay)[1].startswith("ready; delivery is paused by ")
        relay.stop()
        assert relay.cli_json("resume") == {
            "delivery": None,
            "accept": None,
            "resumed": ["delivery"],
        }
        relay.start()
        assert readiness(relay) == (200, "ready\n")


def test_a_full_disk_is_named_by_a_relay_that_runs_and_without_one(remotes: Remotes) -> None:
    relay = remotes.relay()
    state = relay.folder / "state"
    with small_disk(state, size_bytes=64 << 20), relay:
        for code in (75, 69):
            with filled(state):
                done = relay.cli("pause", "delivery")
            assert (done.returncode, f"{state}/paused.json: No" in done.stderr) == (code, True)
            relay.stop()


def test_a_file_that_cannot_be_read_ends_the_start(remotes: Remotes, serve) -> None:
    relay = serve(remotes, start=False)
    assert relay.cli("pause", "all").returncode == USAGE
    (relay.folder / "state" / "paused.json").write_text("{")
    relay.start(wait=False)
    assert relay.wait_end() == CONFIGURATION
    assert "paused.json: found what cannot be read" in relay.log
