"""Routes that change while mail waits: no mail leaves with the login of another route."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes

ALICE = "alice@example.test"
USERS = dict.fromkeys(("one", "two", "three"), "secret")
LATER = "451 4.7.1 come again"


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as remotes:
        yield remotes


def login_of(server: RemoteMx, address: str) -> str:
    """The login under which the only message for `address` came, "" for none."""
    (envelope,) = server.received(address)
    return server.logins.get(envelope.session, "")


def test_mail_that_waits_leaves_only_by_a_route_that_still_takes_it(
    remotes: Remotes, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("secret\n")
    # loopback addresses, where a login needs no TLS
    host = remotes.start("first.test", replies={"MAIL": LATER}, users=USERS)
    other = remotes.start("second.test", users=USERS)

    def route(domain: str, login: str, server: RemoteMx = host, **more: Any) -> dict[str, Any]:
        to = f"smtp://{server.host}:{server.port}"
        auth = {"user": login, "password_file": str(tmp_path / "password")}
        return {"domain": domain, "next_hop": to, "auth": auth, **more}

    addresses = [f"x@{name}.test" for name in ("kept", "renamed", "moved", "gone", "refused")]
    kept, renamed, moved, gone, refused = addresses
    before = [
        route("kept.test", "one", name="of kept", sender="*@example.test"),
        route("renamed.test", "two", name="of renamed"),
        route("moved.test", "three", name="of moved"),
        route("gone.test", "one"),
        route("refused.test", "two"),
    ]
    after = [
        route("new.test", "three"),  # above all
        route("kept.test", "one", name="of kept", sender="*@example.test"),
        route("renamed.test", "three", name="of another name"),
        route("moved.test", "three", other, name="of moved"),
        {"domain": "gone.test", "next_hop": f"smtp://{other.host}:{other.port}"},
        {"domain": "refused.test", "next_hop": "reject:5.1.6 moved away"},
    ]
    config = {"route": before, "delivery": {"retry": ["1h"]}}
    with remotes.relay(config=config) as relay:
        ids = {address: relay.submit(ALICE, [address]) for address in addresses}
        both = relay.submit(ALICE, [f"y{address[1:]}" for address in (renamed, gone, refused)])
        for queue_id in (*ids.values(), both):
            relay.until_state(queue_id, "deferred")
        routes = {one["recipients"][0]["address"]: one["route"] for one in relay.queue()}
        assert routes[kept] == "of kept"
        assert routes[gone] == f"gone.test smtp://{host.host}:{host.port}"
        assert relay.journey(ids[kept])["recipients"][0]["route"] == "of kept"
        relay.stop()
        host.replies = {}
        relay.config["route"] = after
        relay.write_config(relay.config)
        relay.start()
        relay.cli_json("queue", "retry", "--all")
        states = {address: relay.until_final(ids[address])["state"] for address in addresses}
        assert states == dict.fromkeys(addresses, "relayed") | {refused: "failed"}
        relay.until_final(both)
        assert set(relay.states(both).values()) == {"relayed", "failed"}
        assert [login_of(host, one) for one in (kept, renamed)] == ["one", "three"]
        assert [login_of(other, one) for one in (moved, gone)] == ["three", ""]
        assert (login_of(host, "y@renamed.test"), login_of(other, "y@gone.test")) == ("three", "")
        (reason,) = [
            step["detail"]["why"]
            for step in relay.journey(ids[renamed])["steps"]
            if step["detail"].get("operation") == "reroute"
        ]
        assert reason == "its route has changed"
        until("nothing is left", lambda: not relay.queue())
        assert relay.faults() == []


def test_mail_that_a_route_holds_is_sent_by_a_release_only(remotes: Remotes) -> None:
    """Over a restart with other routes as well, which no longer say where it goes."""
    host, other = remotes.start("first.test"), remotes.start("second.test")

    def route(name: str, to: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "domain": "*.test", "next_hop": to, **more}

    hub, backup = (f"smtp://{one.host}:{one.port}" for one in (host, other))
    config = {"route": [route("slow", "hold", sender="*@example.test"), route("hub", hub)]}
    with remotes.relay(config=config) as relay:
        stays, goes, moves = (relay.submit(ALICE, [f"{one}@a.test"]) for one in "xyz")
        for queue_id in (stays, goes, moves):
            relay.until_state(queue_id, "held")
        (shown, *_) = relay.cli_json("queue", "list", "--state", "held")
        assert (shown["reason"], shown["rule"], shown["route"]) == ("route slow", "", "hub")
        assert shown["since"]
        assert shown["next_hop"] == hub
        journey = relay.journey(goes)
        (routed,) = [step["detail"] for step in journey["steps"] if step["step"] == 5]
        assert routed["held"] == {"route slow": ["y@a.test"]}
        assert journey["recipients"][0]["reason"] == "route slow"
        relay.cli("queue", "release", goes)
        assert relay.until_final(goes)["state"] == "relayed"
        assert [len(host.received(f"{one}@a.test")) for one in "xyz"] == [0, 1, 0]
        relay.cli("queue", "reroute", moves, "--to", backup)  # stays held
        relay.cli("queue", "release", moves)
        assert relay.until_final(moves)["state"] == "relayed"
        assert len(other.received("z@a.test")) == 1
        relay.stop()
        relay.config["route"] = [route("renamed", "hold"), route("backup", backup)]
        relay.write_config(relay.config)
        relay.start()
        (shown,) = relay.queue()
        assert (shown["state"], shown["reason"], shown["route"]) == ("held", "route slow", "hub")
        relay.cli("queue", "release", stays)
        assert relay.until_final(stays)["state"] == "relayed"  # rerouted, and not held again
        assert ([*host.received("x@a.test")], len(other.received("x@a.test"))) == ([], 1)
        assert relay.faults() == []


def test_the_names_of_routes_are_checked(tmp_path: Path) -> None:
    config = {
        "route": [
            {"domain": "a.test", "next_hop": "mx", "name": "same"},
            {"domain": "b.test", "next_hop": "mx", "name": "same"},
        ]
    }
    relay = RelayProcess(config=config)
    try:
        done = relay.cli("check")
        lines = [one for one in (done.stdout + done.stderr).splitlines() if "same" in one]
        assert len(lines) == 2
        pairs = ("route[0]", "route[1]"), ("route[1]", "route[0]")
        for line, (name, another) in zip(lines, pairs, strict=True):
            assert f'{name}.name: found "same", expected a name of its own: {another}' in line
    finally:
        relay.close()
