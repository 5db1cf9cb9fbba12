"""Recipes of the documentation, run with the settings that they show."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay_process import ROOT
from tests.support.remotes import Remotes, received
from tests.support.tls import Authority, authority

__all__ = ["authority"]
INSTALL = ROOT / "docs" / "operation-install.md"


def settings_in(file: Path, heading: str) -> str:
    """Return the settings of relay.toml under a heading."""
    section = file.read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```toml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as remotes:
        yield remotes


def test_send_through_a_provider_with_a_password(remotes: Remotes, authority: Authority) -> None:
    text = settings_in(INSTALL, "## Send through a provider with a password")
    users = {"shop": "a shop's password", "relay": "another password"}
    tls = authority.issue("DNS:smtp.provider.example").server_context()
    provider = remotes.start("provider.example", tls=tls, users=users)
    remotes.dns.zone["smtp.provider.example"] = {"A": [provider.host]}
    assert text.count(":587") == 2
    text = text.replace(":587", f":{provider.port}")
    text = text.replace("auth =", f'ca = "{authority.certificate}"\nauth =')
    relay = remotes.relay()
    with relay.config_file.open("a") as file:
        file.write(text)
    for user, password in users.items():
        (relay.folder / f"{user}.password").write_text(f"{password}\n")
    with relay:
        for sender, route, user in (
            ("orders@shop.example.org", "shop", "shop"),
            ("ann@example.test", "everybody else", "relay"),
            ("", "everybody else", "relay"),
        ):
            recipient = f"to-{user}{len(sender)}@customer.example"
            journey = relay.until_final(relay.submit(sender, [recipient]))
            (to,) = journey["recipients"]
            assert (to["state"], to["route"]) == ("relayed", route)
            envelope = received(provider, recipient)
            assert envelope.tls
            assert (envelope.reverse_path, provider.logins[envelope.session]) == (sender, user)
        (relay.folder / "shop.password").write_text("the wrong one\n")
        relay.stop()
        relay.start()
        waiting = relay.submit("orders@shop.example.org", ["later@customer.example"])
        sent = relay.submit("ann@example.test", ["now@customer.example"])
        assert relay.until_final(sent)["state"] == "relayed"
        journey = relay.until_state(waiting, "deferred")
        assert "535" in journey["recipients"][0]["attempts"][0]["reply"]
    assert provider.received("later@customer.example") == []
