"""Reloads while mail comes and goes: routes, limits and domains change, nothing is lost."""

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.integration.test_reload import codes
from tests.support.dns_server import DnsThread
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes
from tests.support.tls import Authority, authority, new_authority

__all__ = ["authority"]

ALICE = "alice@example.test"
PASSWORD = "secret"
LATER = "451 4.7.1 come again"


class HoldsOnly(asyncio.Event):
    """A gate that holds one who comes, by number; the others pass."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number, self._came = number, 0

    async def wait(self) -> bool:
        self._came += 1
        return self._came != self._number or await super().wait()


def route_to(server: RemoteMx, folder: Path, login: str, **more: Any) -> dict[str, Any]:
    """A route for all mail, with the login."""
    file = folder / "password"
    file.write_text(PASSWORD)
    return {
        "name": "hub",
        "domain": "*",
        "next_hop": f"smtp://{server.host}:{server.port}",
        "auth": {"user": login, "password_file": str(file)},
    } | more


def reload(relay: RelayProcess, **changes: Any) -> dict[str, Any]:
    """Change relay.toml, table by table, and reload it; return what the command says."""
    relay.config |= changes
    relay.write_config(relay.config)
    done = relay.cli("reload", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def logins_of(server: RemoteMx, *addresses: str) -> list[str]:
    """The login under which the only message for each of these came."""
    return [server.logins.get(one.session, "") for a in addresses for one in server.received(a)]


def test_no_transaction_begins_with_the_old_login(remotes: Remotes, tmp_path: Path) -> None:
    """Not on a connection that is being opened at the reload, either; one in progress goes on."""
    dot, auth = HoldsOnly(1), HoldsOnly(2)
    users = {"old": PASSWORD, "new": PASSWORD}
    host = remotes.start("hub.test", users=users, gates={"DOT": dot, "AUTH": auth})
    config = {
        "route": [route_to(host, tmp_path, "old")],
        "delivery": {"max_connections_per_next_hop": 2},
    }
    with remotes.relay(config=config) as relay, closing(relay.smtp()) as client:
        client.ehlo()
        first = relay.submit(ALICE, ["first@a.test"])
        until("the first is being sent", host.reached_stages["DOT"].is_set)
        others = [relay.submit(ALICE, [f"{name}@a.test"]) for name in ("second", "third", "fourth")]
        until("another connection is being opened", lambda: len(host.logins) == 2)
        assert reload(relay, route=[route_to(host, tmp_path, "new")])["needs_restart"] == []
        (changed,) = [one for one in relay.log.splitlines() if "routes have changed" in one]
        fields = json.loads(changed)
        assert fields["changed"] == "hub"
        assert fields.keys().isdisjoint({"added", "removed"})
        late = relay.submit(ALICE, ["late@a.test"])
        until("mail goes on with the new login", lambda: host.received("late@a.test"))
        remotes.open_gate(auth)
        for queue_id in (*others, late):
            relay.until_final(queue_id)
        remotes.open_gate(dot)
        assert relay.until_final(first)["state"] == "relayed"
        addresses = [f"{name}@a.test" for name in ("first", "second", "third", "fourth", "late")]
        assert logins_of(host, *addresses) == ["old", "new", "new", "new", "new"]
        assert len([one for one in host.commands if one.startswith("MAIL")]) == len(addresses)
        until("the old connections are closed", lambda: host.open == 0)
        assert codes(client, "NOOP") == [250]
        assert relay.faults() == []


def test_another_certificate_authority_in_the_file_of_a_route_counts(
    remotes: Remotes, tmp_path: Path, authority: Authority, serve
) -> None:
    host = remotes.start(
        "hub.test", users={"u": PASSWORD}, tls=authority.issue("IP:127.0.0.11").server_context()
    )
    file = tmp_path / "of-the-route.pem"
    file.write_bytes(Path(new_authority(tmp_path).certificate).read_bytes())
    config = {"route": [route_to(host, tmp_path, "u", tls="verify", ca=str(file))]}
    relay = serve(remotes, config=config | {"delivery": {"retry": ["1h"]}})
    queue_id = relay.submit(ALICE, ["x@a.test"])
    relay.until_state(queue_id, "deferred")
    file.write_bytes(Path(authority.certificate).read_bytes())
    reload(relay)
    relay.cli_json("queue", "retry", "--all")
    assert relay.until_final(queue_id)["state"] == "relayed"


def test_what_a_session_may_do_follows_relay_toml(remotes: Remotes, tmp_path: Path) -> None:
    with remotes.relay() as relay, closing(relay.smtp()) as open_before:
        open_before.ehlo()
        assert codes(open_before, f"MAIL FROM:<{ALICE}>", "RCPT TO:<nobody@new.test>") == [250, 250]
        changed = reload(
            relay,
            smtp=[relay.config["smtp"][0] | {"trusted_networks": [], "max_recipients": 1}],
            mailboxes=relay.config["mailboxes"]
            | {"domains": ["example.test", "new.test"], "catch_all": ALICE},
            policy=relay.config["policy"] | {"held_max": 1},
            spool={"keep": "3d"},
        )
        assert [one["key"] for one in changed["needs_restart"]] == ["spool.keep"]
        assert codes(open_before, "RCPT TO:<x@elsewhere.test>", "RSET") == [250, 250]
        with closing(relay.smtp()) as client:
            client.ehlo()
            assert codes(client, "MAIL FROM:<s@elsewhere.test>") == [250]
            assert codes(client, "RCPT TO:<x@elsewhere.test>") == [550]  # not trusted any more
            assert codes(client, "RCPT TO:<anybody@new.test>") == [250]
            assert codes(client, "RCPT TO:<bob@example.test>") == [452]
            assert codes(client, "DATA") == [354]
            client.send(b"Subject: to anybody\r\n\r\nx\r\n.\r\n")
            assert client.getreply()[0] == 250
        until("the catch-all has it", lambda: relay.subjects() == ["to anybody"])


def test_times_name_servers_and_reports_follow_relay_toml(remotes: Remotes) -> None:
    host = remotes.start("a.test", rcpt={"late@a.test": LATER})
    config = {"delivery": {"retry": ["1h"]}}
    with remotes.relay(config=config) as relay, DnsThread() as other:
        until_deferred = relay.submit(ALICE, ["late@a.test"])
        relay.until_state(until_deferred, "deferred")
        other.zone |= {"b.test": {"MX": ["10 mx.b.test."]}, "mx.b.test": {"A": [host.host]}}
        reload(
            relay,
            delivery=relay.config["delivery"] | {"expire_after": "1s", "retry": [0.1]},
            dns=relay.config["dns"] | {"nameservers": [str(other.address)]},
            reports={"copy_to": "bob@example.test"},
        )
        assert relay.until_final(relay.submit(ALICE, ["x@b.test"]))["state"] == "relayed"
        host.rcpt = {"late@b.test": LATER}
        assert relay.until_final(relay.submit(ALICE, ["late@b.test"]))["state"] == "expired"
        until("bob has the copy", lambda: relay.subjects("bob"))
