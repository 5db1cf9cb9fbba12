"""`relay queue hold --domain D --new`: what comes is held, in all ways, until the release."""

import json

from tests.support.relay_process import until
from tests.support.remotes import Remotes, received

ALICE = "alice@example.test"


def test_mail_for_a_domain_is_held_as_it_comes_until_its_release(remotes: Remotes, serve) -> None:
    mx = remotes.start("a.test")
    other = remotes.start("b.test")
    relay = serve(remotes)
    done = relay.cli("queue", "hold", "--domain", "a.test", "--new", "--reason", "a loop")
    assert done.stdout == "held 0 of 0 entries, and what comes for a.test\n", done.stderr
    told = relay.cli_json("explain", "x@a.test")
    assert (told["state"], told["reason"][-8:]) == ("held", ": a loop")
    sent = relay.submit(ALICE, ["x@a.test", "y@b.test"])
    drafted = relay.send_mail(to=["z@a.test"])
    received(other, "y@b.test")
    until("held", lambda: relay.states(drafted) == {"z@a.test": "held"})
    assert relay.states(sent) == {"x@a.test": "held", "y@b.test": "relayed"}
    assert ": a loop: x@a.test" in relay.cli("trace", sent).stdout
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
