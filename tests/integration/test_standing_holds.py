"""`relay queue hold --domain D --new`: what comes is held, in all ways, until the release."""

import json

from tests.support.relay_process import until
from tests.support.remotes import Remotes, received

ALICE, BOB = "alice@example.test", "bob@example.test"


def test_mail_for_a_domain_is_held_as_it_comes_until_its_release(remotes: Remotes) -> None:
    mx = remotes.start("a.test")
    other = remotes.start("b.test")
    with remotes.relay() as relay:
        done = relay.cli("queue", "hold", "--domain", "a.test", "--new", "--reason", "a loop")
        assert done.stdout == "held 0 of 0 entries, and what comes for a.test\n", done.stderr
        sent = relay.submit(ALICE, ["x@a.test", "y@b.test"])
        drafted = relay.send_mail(to=["z@a.test"])
        received(other, "y@b.test")
        until("held", lambda: relay.states(drafted) == {"z@a.test": "held"})
        assert relay.states(sent) == {"x@a.test": "held", "y@b.test": "relayed"}
        held = json.loads(relay.cli("queue", "list", "--state", "held", "--json").stdout)
        assert all(one["reason"].endswith(": a loop") for one in held)
        assert len(held) == 2
        assert relay.cli("reload").returncode == 0
        reloaded = relay.submit(ALICE, ["u@a.test"])
        assert relay.states(reloaded) == {"u@a.test": "held"}
        assert relay.stop() == 0
        relay.start()
        again = relay.submit(ALICE, ["w@a.test"])
        assert relay.states(again) == {"w@a.test": "held"}
        stats = relay.cli("queue", "stats").stdout
        assert "holds new    a.test, by " in stats
        assert mx.envelopes == []
        done = relay.cli("queue", "release", "--domain", "a.test")
        assert done.stdout == "released 4 of 4 entries, and what comes for a.test\n"
        for queue_id in (sent, drafted, reloaded, again, relay.submit(ALICE, ["v@a.test"])):
            relay.until_final(queue_id)
        for name in "uvwxz":
            received(mx, f"{name}@a.test")


def test_reports_and_local_mail_are_held_as_they_come(remotes: Remotes) -> None:
    remotes.start("a.test", rcpt={"no@a.test": ["550 5.1.1 nobody"]})
    with remotes.relay() as relay:
        relay.cli("queue", "hold", "--domain", "example.test", "--new")
        relay.submit(ALICE, ["no@a.test"])
        local = relay.submit(ALICE, [BOB])
        assert relay.states(local) == {BOB: "held"}
        until("the report", lambda: [one["state"] for one in relay.queue()] == ["held", "held"])
        assert relay.subjects("bob") == []
        relay.cli("queue", "hold", "--domain", "example.test", "--new", "--until", "1s")
        relay.until_final(local)  # the hold ends by itself
        until("the report", lambda: len(relay.subjects("alice")) == 1)


RULE = """
[[rule]]
name = "many"
when = { recipient = "x@a.test" }
then = [ { hold = "read it first" } ]
"""


def test_the_end_of_a_hold_releases_nothing_that_a_rule_holds(remotes: Remotes) -> None:
    with remotes.relay(policies={"10-hold.toml": RULE}) as relay:
        relay.cli("queue", "hold", "--domain", "a.test", "--new", "--until", "1h")
        relay.submit(ALICE, ["x@a.test"])
        relay.submit(ALICE, ["y@a.test"])
        entries = {one["recipients"][0]["address"]: one for one in relay.queue()}
        assert (entries["x@a.test"]["rule"], entries["x@a.test"]["held_until"]) == ("many", None)
        assert entries["y@a.test"]["held_until"] is not None


def test_what_the_command_refuses(remotes: Remotes) -> None:
    with remotes.relay() as relay:
        for words, fault in (
            (["--all"], "Error: --new: it takes a domain, and no other condition"),
            (["--domain", "a*"], "Error: --domain: found 'a*', expected a domain or *.DOMAIN"),
        ):
            done = relay.cli("queue", "hold", "--new", *words)
            assert (done.returncode, fault in done.stderr) == (64, True), done.stderr
