"""conf/providers.toml and [delivery] providers in a real relay: pauses, explain, queue, reload, check."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

ALICE = "alice@example.test"
BLOCKED = "550 5.7.1 blocked for a while"
OWN = """
[[reply]]
name = "blocked"
mx = "mx.paused.test"
code = 550
text = "blocked"
class = "site"
pause = "2h"
"""
FAULTY = OWN.replace('"site"', '"sight"')
FAULT = 'own.toml:7: reply "blocked": class: found "sight", expected one of failed, '


@pytest.fixture(scope="module")
def relay(remotes_module: Remotes) -> Iterator[RelayProcess]:
    remotes_module.start("well.test")
    delivery = {"providers": "own.toml", "retry": ["1h"]}
    config = {"delivery": delivery}
    relay = remotes_module.relay(config=config)
    (relay.folder / "own.toml").write_text(OWN)
    with relay:
        yield relay


def attempts_of(relay: RelayProcess, identity: str) -> list[dict[str, Any]]:
    (recipient,) = relay.journey(identity)["recipients"]
    return list(recipient["attempts"])


def test_a_pause_is_shown_and_ended_by_an_operator(
    remotes_module: Remotes, relay: RelayProcess
) -> None:
    mx = remotes_module.start("paused.test", replies={"RCPT": [BLOCKED, "250 2.1.5 ok"]})
    first = relay.submit(ALICE, ["first@paused.test"])
    relay.until_state(first, "deferred")
    (attempt,) = attempts_of(relay, first)
    assert (attempt["status"], attempt["reply"]) == ("4.7.1", BLOCKED)
    assert (attempt["outcome"], attempt["provider"]) == ("deferred", "blocked")
    assert "for a while (entry blocked)" in relay.cli("trace", first).stdout
    second = relay.submit(ALICE, ["second@paused.test"])
    entries = until("both wait", lambda: [one for one in relay.queue() if one["attempts"] == 0])
    assert [one["id"] for one in entries] == [second]

    site = relay.cli_json("explain", "x@paused.test")["site"]
    assert site["paused_by"] == "blocked"
    (paused,) = relay.cli_json("queue", "stats")["paused_sites"]
    assert (paused["site"], paused["by"]) == (f"mx.paused.test:{remotes_module.port}", "blocked")
    assert paused["until"][:16] == site["paused_until"][:16]
    line = f"paused       mx.paused.test:{remotes_module.port} until {paused['until'][:19]}Z, by blocked"
    assert line in relay.cli("queue", "stats").stdout.splitlines()
    explained = relay.cli("explain", "x@paused.test").stdout
    assert f"paused until {site['paused_until'][11:19]} UTC by blocked" in explained

    assert mx.sessions == 1
    assert relay.cli("queue", "retry", "--next-hop", "paused.test").returncode == 0
    for identity in (first, second):
        relay.until_state(identity, "relayed")
    assert relay.cli_json("queue", "stats")["paused_sites"] == []


def test_a_reload_uses_a_valid_file_only(remotes_module: Remotes, relay: RelayProcess) -> None:
    remotes_module.start("other.test", replies={"RCPT": BLOCKED})
    own = relay.folder / "own.toml"
    own.write_text(FAULTY)
    reloaded = relay.cli("reload", "--json")
    assert not json.loads(reloaded.stdout)["reloaded"]
    (fault,) = json.loads(reloaded.stdout)["faults"]
    assert fault.startswith(f"{relay.folder}/{FAULT}")
    checked = relay.cli("check")
    assert checked.returncode == 78
    assert f"{relay.folder}/{FAULT}" in checked.stdout + checked.stderr
    assert relay.until_final(relay.submit(ALICE, ["x@other.test"]))["state"] == "failed"
    own.write_text(OWN.replace("mx.paused.test", "mx.other.test"))
    assert json.loads(relay.cli("reload", "--json").stdout)["reloaded"]
    relay.until_state(relay.submit(ALICE, ["y@other.test"]), "deferred")
    checked = relay.cli("check")
    assert f"20 entries of {own} and of the file that is shipped" in checked.stdout
