"""Queue commands with real remote hosts: held or cancelled mail is not sent, other mail is sent once."""

import getpass
import json
import os
from collections import Counter
from typing import Any

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

OK, USAGE, DATA = 0, 64, 65
ONE_CONNECTION = {"delivery": {"retry": ["1h"], "max_connections_per_next_hop": 1}}


def change(relay: RelayProcess, operation: str, **body: Any) -> dict[str, Any]:
    answer = relay.graph("POST", f"/relay/v1/queue/{operation}", body, token=OPERATOR)
    assert answer.status == 200, answer.body
    return dict(answer.json())


def queue_commands(relay: RelayProcess, queue_id: str) -> list[dict[str, Any]]:
    """What the journey says was done by hand."""
    details = (step["detail"] for step in relay.journey(queue_id)["steps"])
    return [one for one in details if "operation" in one]


def test_a_hold_waits_for_the_end_of_an_attempt_and_holds_the_others_at_once(
    remotes: Remotes, serve
) -> None:
    gate = remotes.gate()
    mx = remotes.start("slow.test", gates={"DOT": gate})
    relay = serve(remotes, config=ONE_CONNECTION)
    first = relay.submit("alice@example.test", ["first@slow.test"])
    remotes.run(mx.reached("DOT"))
    others = [relay.submit("alice@example.test", [f"{n}@slow.test"]) for n in range(4)]
    done = relay.cli("queue", "hold", first)
    assert (done.returncode, "when its attempt ends" in done.stdout) == (OK, True)
    would = relay.cli_json("queue", "hold", "--all", "--dry-run")
    assert {one["id"]: (one["result"], one["state"]) for one in would} == {
        first: ("ordered", "queued"),
        **dict.fromkeys(others, ("done", "queued")),
    }
    answer = relay.cli_json("queue", "hold", "--all", "--reason", "the remote is slow")
    results = {one["id"]: (one["result"], one["state"]) for one in answer}
    assert results == {first: ("ordered", "queued")} | dict.fromkeys(others, ("done", "held"))
    assert change(relay, "cancel", ids=others[:1], reason="twice")["done"] == 1
    remotes.open_gate(gate)
    assert relay.until_final(first)["state"] == "relayed"
    said = [one["operation"] for one in queue_commands(relay, first)]
    assert said == ["hold ordered", "hold ordered", "hold too late: sent"]
    (hold,) = queue_commands(relay, others[1])
    assert (hold["operation"], hold["why"]) == ("hold", "the remote is slow")
    assert hold["who"]
    assert relay.stop() == OK
    relay.start()
    stats = relay.graph("GET", "/relay/v1/queue/stats", token=OPERATOR).json()
    assert (stats["entries"]["held"], stats["recipients"]) == (3, 3)
    assert change(relay, "release", ids=others[1:3])["done"] == 2
    for queue_id in others[1:3]:
        relay.until_state(queue_id, "relayed")
    assert [one["id"] for one in relay.queue()] == [others[3]]
    listed = relay.cli("queue", "list", "<a,b@c>", others[3])
    assert listed.stderr.strip().endswith('not in the queue: "<a,b@c>"')
    assert others[3] in listed.stdout
    assert Counter(one.addresses[0] for one in mx.envelopes) == {
        "first@slow.test": 1,
        "1@slow.test": 1,
        "2@slow.test": 1,
    }
    until("counted", lambda: relay.metric("relay_queue_entries", state="held") == 1)
    assert relay.metric("relay_queue_unaccounted") == 0
    [group] = relay.cli_json("stats", "--by", "domain", "--since", "1h")["groups"]
    assert (group["name"], group["accepted"], group["delivered"]) == ("slow.test", 3, 3)
    head, columns, row = relay.cli("stats", "--by", "route", "--since", "30d").stdout.splitlines()
    assert head.endswith("spool.keep keeps nothing older")
    assert columns.split()[:5] == ["ROUTE", "ACCEPTED", "DELIVERED", "DEFERRED", "FAILED"]
    assert row.split()[:5] == ["mx", "3", "3", "0", "0"]
    assert relay.faults() == []


def test_each_act_is_in_the_log_with_its_user(remotes: Remotes, serve) -> None:
    remotes.start("slow.test", rcpt=dict.fromkeys(("a@slow.test", "b@slow.test"), "450 4.2.0 no"))
    sudo_user = os.fsdecode(b"m\xc3\xbcl\xffler")  # the latter is no UTF-8
    relay = serve(remotes, config=ONE_CONNECTION, environment={"SUDO_USER": sudo_user})
    user = f"{getpass.getuser()} (SUDO_USER m\u00fcl\ufffdler)"
    ids = [relay.submit("alice@example.test", [f"{name}@slow.test"]) for name in "ab"]
    sent = relay.send_mail(to=["bob@example.test"], subject="kept")
    relay.until_final(sent)
    for queue_id in ids:
        relay.until_state(queue_id, "deferred")
    assert change(relay, "cancel", ids=ids[:1], reason="I did it")["done"] == 1
    for words in (
        ("queue", "cancel", "--sender", "alice@*", "--dry-run"),
        ("queue", "cancel", "--sender", "alice@*"),
        ("queue", "hold", "--domain", "a.test", "--new", "--until", "2h"),
        ("queue", "release", "--domain", "a.test", "--as-before"),
        ("queue", "cancel", "--subject", "n?", "--bounce", "--text", "secret"),
        ("show", sent),
        ("pause", "delivery"),
        ("account", "token", "carol@example.test"),
        ("account", "token", "carol@example.test", "--client", "--remove"),
        ("reload",),
    ):
        assert relay.cli(*words).returncode == OK, words
    assert [one["who"] for one in queue_commands(relay, ids[1])] == [user]
    pruned = relay.cli_json("storage", "prune", "--older-than", "0s")
    assert (pruned["messages"], pruned["submissions"]) == (3, 0)
    (answer, *_) = relay.cli("trace", sent).stdout.splitlines()
    assert answer == "History removed: it was accepted; what became of it is not kept any more."
    assert relay.cli("wait", sent, "--state", "final").returncode == OK
    lines = [json.loads(line) for line in relay.log.splitlines()]
    place = {"at": "", "level": "", "node": ""}  # on PostgreSQL a line names the node
    found = [one | place for one in lines if "who" in one]
    act = place | {"room": "api", "who": user}
    by_hand = act | {"event": "queue command", "operation": "cancel"}
    done, none = ({"matched": one, "done": one, "ordered": 0} for one in (1, 0))
    hold = {"operation": "hold", "domain": "a.test", "new": True, "until": "2h"}
    release = {"operation": "release", "domain": "a.test", "as_before": True}
    account = act | {"event": "account changed", "accounts": "carol@example.test"}
    token = {"who": f"{OPERATOR}@example.test", "reason": "I did it", "ids": ids[0]}
    removed = {"messages": 3, "submissions": 0, "ended": True, "refused": 0}
    assert found == [
        by_hand | done | token,
        by_hand | done | {"sender": "alice@*"},
        by_hand | none | hold,
        by_hand | none | release,
        by_hand | none | {"subject": "n?", "bounce": True, "text": "6 characters"},
        act | {"event": "content of others read", "message": found[5]["message"], "view": "source"},
        act | {"event": "paused", "what": "delivery", "until": ""},
        account | {"change": "token"},
        account | {"change": "token --client --remove"},
        act | {"event": "reload", "reloaded": True},
        act | {"event": "history pruned", "older_than_s": 0.0} | removed,
    ]


def test_a_retry_by_hand_ignores_the_unreachable_state_of_the_site(remotes: Remotes, serve) -> None:
    live = remotes.start("live.test")
    remotes.dns.zone["dead.test"] = {"MX": ["10 mx.dead.test."]}
    remotes.dns.zone["mx.dead.test"] = {"A": ["127.0.0.12"]}  # where the next one will listen
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    rerouted, retried = (
        relay.submit("alice@example.test", [f"{name}@dead.test"])
        for name in ("rerouted", "retried")
    )
    for queue_id in (rerouted, retried):
        relay.until_state(queue_id, "deferred")
    assert change(relay, "reroute", ids=[rerouted], to="mx:live.test")["done"] == 1
    assert relay.until_final(rerouted)["state"] == "relayed"
    received(live, "rerouted@dead.test")
    back = remotes.start("dead.test")
    assert change(relay, "retry", next_hop="dead.test")["done"] == 1
    assert relay.until_final(retried)["state"] == "relayed"
    received(back, "retried@dead.test")
    assert [one["operation"] for one in queue_commands(relay, retried)] == ["retry"]


def test_what_the_commands_say(serve) -> None:
    hop = {"name": "smart", "domain": "b.test", "next_hop": "smtp://smart.test:26"}
    relay = serve(config={"route": [hop, {"domain": "*", "next_hop": "capture"}]})
    assert relay.cli("pause", "delivery").returncode == OK
    first, second = (relay.submit("alice@example.test", [f"x@{n}.test"]) for n in ("b", "b.b"))
    done = relay.cli("queue", "hold", first, "nobody-knows", "<m@x>", "--until", "2h")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (DATA, "held 1 of 1 entry")
    assert 'relay queue hold: not in the queue: "nobody-knows", "<m@x>"' in done.stderr
    (held,) = relay.cli_json("queue", "list", "--state", "held")
    assert held["held_until"] == held["due"] is not None
    assert "held until " in relay.cli("queue", "list").stdout
    done = relay.cli("queue", "reroute", second, "--to", "route:smart", "--json")
    assert done.stderr.startswith("relay queue reroute: rerouted 1 of 1 entry\n")
    found = relay.cli_json("queue", "list", "--route", "smart")
    assert {(one["id"], one["next_hop"]) for one in found} == {
        (first, "smtp://smart.test:26"),
        (second, "smtp://smart.test:26"),
    }
    for words, fault in (
        (("hold", "--all", "--reason", "a\nb"), "--reason: expected one line"),
        (("reroute", "--all", "--to", "nowhere"), "--to: found 'nowhere'"),
        (
            ("reroute", "--all", "--to", "route:smrt"),
            "expected the name of a route to hosts: smart",
        ),
    ):
        refused = relay.cli("queue", *words)
        assert (refused.returncode, fault in refused.stderr) == (USAGE, True), refused.stderr
    done = relay.cli("queue", "release", "--domain", "b.*")
    assert done.stdout.splitlines()[0] == "released 1 of 2 entries, 1 stays as it was"
    assert relay.cli("queue", "cancel", "--all").stdout == "cancelled 2 of 2 entries\n"
    assert "cancel by " in relay.cli("queue", "show", first).stdout
