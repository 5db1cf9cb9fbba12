"""Routes that change while mail waits: none leaves with another route's login, CA or source."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes
from tests.support.tls import Authority, authority, new_authority

__all__ = ["authority"]

ALICE = "alice@example.test"
USERS = dict.fromkeys(("one", "two", "three"), "secret")
LATER = "451 4.7.1 come again"


def way_of(server: RemoteMx, address: str) -> tuple[str, str]:
    """The login under which the only message for `address` came, "" for none, and from where."""
    (envelope,) = server.received(address)
    return server.logins.get(envelope.session, ""), server.origins[envelope.session]


SOURCES = {"one": "127.0.0.101", "two": "127.0.0.102", "three": "127.0.0.103"}


def change_routes(relay: RelayProcess, after: list[dict[str, Any]], how: str) -> None:
    relay.config["route"] = after
    relay.write_config(relay.config)
    if how == "reload":
        assert relay.cli("reload").returncode == 0
    else:
        relay.stop()
        relay.start()


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_mail_that_waits_leaves_only_by_a_route_that_still_takes_it(
    remotes: Remotes, tmp_path: Path, authority: Authority, how: str, serve
) -> None:
    (tmp_path / "password").write_text("secret\n")
    # Each host has a certificate of another CA: with the wrong one its mail is deferred.
    second = new_authority(tmp_path)
    tls = authority.issue("IP:127.0.0.11").server_context()
    host = remotes.start("first.test", replies={"MAIL": LATER}, users=USERS, tls=tls)
    tls = second.issue("IP:127.0.0.12").server_context()
    other = remotes.start("second.test", users=USERS, tls=tls)
    ca = {host.host: str(authority.certificate), other.host: str(second.certificate)}

    def route(domain: str, login: str, server: RemoteMx = host, **more: Any) -> dict[str, Any]:
        to = f"smtp://{server.host}:{server.port}"
        auth = {"user": login, "password_file": str(tmp_path / "password")}
        own = {
            "auth": auth,
            "tls": "verify",
            "ca": ca[server.host],
            "source_address": SOURCES[login],
        }
        return {"domain": domain, "next_hop": to} | own | more

    addresses = [f"x@{name}.test" for name in ("kept", "renamed", "moved", "gone", "refused")]
    kept, renamed, moved, gone, refused = addresses
    # The host's certificate is not of the CA of this route, only of the others'.
    strict = route("strict.test", "one", name="strict", ca=ca[other.host])
    before = [
        route("kept.test", "one", name="of kept", sender="*@example.test"),
        route("renamed.test", "two", name="of renamed"),
        route("moved.test", "three", name="of moved"),
        route("gone.test", "one"),
        route("refused.test", "two"),
        strict,
    ]
    after = [
        route("new.test", "three"),  # above all
        route("kept.test", "one", name="of kept", sender="*@example.test"),
        route("renamed.test", "three", name="of another name"),
        route("moved.test", "three", other, name="of moved"),
        {"domain": "gone.test", "next_hop": f"smtp://{other.host}:{other.port}"},
        {"domain": "refused.test", "next_hop": "reject:5.1.6 moved away"},
        strict,
    ]
    config = {"route": before, "delivery": {"retry": ["1h"]}}
    relay = serve(remotes, config=config)
    ids = {address: relay.submit(ALICE, [address]) for address in addresses}
    both = relay.submit(ALICE, [f"y{address[1:]}" for address in (renamed, gone, refused)])
    unverified = relay.submit(ALICE, ["x@strict.test"])
    for queue_id in (*ids.values(), both, unverified):
        relay.until_state(queue_id, "deferred")
    routes = {one["recipients"][0]["address"]: one["route"] for one in relay.queue()}
    assert routes[kept] == "of kept"
    assert routes[gone] == f"gone.test smtp://{host.host}:{host.port}"
    assert relay.journey(ids[kept])["recipients"][0]["route"] == "of kept"
    host.replies = {}
    change_routes(relay, after, how)
    relay.cli_json("queue", "retry", "--all")
    states = {address: relay.until_final(ids[address])["state"] for address in addresses}
    assert states == dict.fromkeys(addresses, "relayed") | {refused: "failed"}
    relay.until_final(both)
    assert set(relay.states(both).values()) == {"relayed", "failed"}
    by = {login: (login, source) for login, source in SOURCES.items()} | {"": ("", "127.0.0.1")}
    assert [way_of(host, one) for one in (kept, renamed)] == [by["one"], by["three"]]
    assert [way_of(other, one) for one in (moved, gone)] == [by["three"], by[""]]
    assert way_of(host, "y@renamed.test") == by["three"]
    assert way_of(other, "y@gone.test") == by[""]
    attempts = {
        one: relay.journey(ids[one])["recipients"][0]["attempts"][-1] for one in addresses[:4]
    }
    found = {one: (each["verified"], each["policy"]) for one, each in attempts.items()}
    assert found == {
        kept: ("name", "route of kept: verify"),
        renamed: ("name", "route of another name: verify"),
        moved: ("name", "route of moved: verify"),
        gone: ("none", "configuration: none"),
    }
    recorded = until(
        "the retry of the strict route is over",
        lambda: (
            len(all_of := relay.journey(unverified)["recipients"][0]["attempts"]) > 1 and all_of
        ),
    )
    assert {(one["outcome"], one["verified"]) for one in recorded} == {("deferred", "none")}
    assert {one["policy"] for one in recorded} == {"route strict: verify"}
    assert "the certificate is refused" in recorded[-1]["reply"]
    assert host.received("x@strict.test") == other.received("x@strict.test") == []
    relay.cli_json("queue", "cancel", unverified)
    (reason,) = [
        step["detail"]["why"]
        for step in relay.journey(ids[renamed])["steps"]
        if step["detail"].get("operation") == "reroute"
    ]
    assert reason == "its route has changed"
    until("nothing is left", lambda: not relay.queue())
    assert relay.faults() == []


def test_mail_that_a_route_holds_is_sent_by_a_release_only(remotes: Remotes, serve) -> None:
    """With other routes as well, which no longer say where it goes."""
    host, other = remotes.start("first.test"), remotes.start("second.test")

    def route(name: str, to: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "domain": "*.test", "next_hop": to, **more}

    hub, backup = (f"smtp://{one.host}:{one.port}" for one in (host, other))
    config = {"route": [route("slow", "hold", sender="*@example.test"), route("hub", hub)]}
    relay = serve(remotes, config=config)
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
    change_routes(relay, [route("renamed", "hold"), route("backup", backup)], "restart")
    (shown,) = relay.queue()
    assert (shown["state"], shown["reason"], shown["route"]) == ("held", "route slow", "hub")
    relay.cli("queue", "release", stays)
    assert relay.until_final(stays)["state"] == "relayed"  # rerouted, and not held again
    assert ([*host.received("x@a.test")], len(other.received("x@a.test"))) == ([], 1)
    assert relay.faults() == []


def test_the_names_of_routes_are_checked() -> None:
    routes = [{"domain": f"{one}.test", "next_hop": "mx", "name": "same"} for one in "ab"]
    with closing(RelayProcess(config={"route": routes})) as relay:
        done = relay.cli("check")
    told = 'route[1].name: found "same", expected a name of its own: route[0]'
    assert told in done.stdout + done.stderr


def test_mail_that_no_host_answers_leaves_by_the_fallback_of_its_route(
    remotes: Remotes, authority: Authority, serve
) -> None:
    """Mail that gets a reply waits, and so does what the route's tls forbids."""
    tls = authority.issue("IP:127.0.0.11").server_context()
    first = remotes.start("first.test", gates={"CONNECT": remotes.gate()}, tls=tls)
    other = remotes.start("other.test")
    busy = remotes.start("busy.test", replies={"CONNECT": "421 4.3.2 too busy"})

    def route(name: str, host: RemoteMx, **more: Any) -> dict[str, Any]:
        hop, fallback = (f"smtp://{one.host}:{one.port}" for one in (host, other))
        after = {"fallback": fallback, "fallback_after": "3s"}
        return {"name": name, "domain": f"{name}.test", "next_hop": hop} | after | more

    routes = [route("hub", first), route("busy", busy), route("strict", first, tls="required")]
    times = {"retry": ["1s"], "command_timeout": "1s", "connect_timeout": "1s"}
    relay = serve(remotes, config={"route": routes, "delivery": times})
    explained = relay.cli_json("explain", "x@hub.test")["route"]
    assert (explained["fallback"], explained["fallback_after"]) == (routes[0]["fallback"], 3)
    ids = {one: relay.submit(ALICE, [f"x@{one}.test"]) for one in ("hub", "busy", "strict")}
    journey = relay.until_state(ids["hub"], "relayed")
    (recipient,) = journey["recipients"]
    assert (recipient["next_hop"], recipient["route"]) == (explained["fallback"], "hub")
    assert [one["host"] for one in recipient["attempts"][-2:]] == [first.host, other.host]
    whys = [step["detail"].get("why") for step in journey["steps"]]
    assert f"no host of {routes[0]['next_hop']} answered" in whys
    until("the strict one has been at the fallback", lambda: other.sessions > 1)
    relay.until_state(relay.submit(ALICE, ["new@hub.test"]), "relayed")
    assert len(other.envelopes) == 2
    first.gates = {}  # what waits at a fallback is tried at the first before
    relay.until_state(ids["strict"], "relayed")
    relay.until_state(relay.submit(ALICE, ["later@hub.test"]), "relayed")
    assert [one.addresses for one in first.envelopes] == [["x@strict.test"], ["later@hub.test"]]
    (waiting,) = relay.queue()
    assert (waiting["route"], waiting["next_hop"]) == ("busy", routes[1]["next_hop"])
