"""docs/dkim.md: its steps in their order, from no key to mail that passes DMARC, and the change of a key.

In what the page shows, "…" is any text, and any lines if it stands alone. Each TXT record that a
command prints is published in the tests' own DNS server; dkimpy verifies what arrives (RFC 6376),
and d= is the domain of From (RFC 9989 4.4).
"""

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.utils import parseaddr
from typing import Any

from tests.integration.test_reload import hang_up
from tests.support.dkim import verified
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.remotes import Remotes
from tests.unit.transport.policy.test_policy_page import matches

PAGE = (ROOT / "docs/dkim.md").read_text()
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
RECORD = re.compile(r"^(\S+)\. IN TXT (.*)$", re.MULTILINE)
LAST_DAY = "2027-01-31"  # of the page
DOMAIN, READER = "example.org", "you@checker.example"
CONFIG = {"hostname": "relay.example.org", "mailboxes": {"domains": ["example.test", DOMAIN]}}
MISSING = 65
RELOADED = '"event":"reloaded"'


class Administrator:
    """Does what the page says."""

    def __init__(self, relay: RelayProcess, remotes: Remotes, last_day: str) -> None:
        self._relay = relay
        self._remotes = remotes
        self._last_day = last_day
        self._config: dict[str, Any] = relay.config

    def follow(self, section: str) -> Iterator[None]:
        """Run the blocks of a section, in their order; stop after each reload."""
        text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        for kind, indented in BLOCK.findall(text):
            block = textwrap.dedent(indented).replace(LAST_DAY, self._last_day)
            if kind == "toml":
                self._config |= tomllib.loads(block)
                self._relay.write_config(self._config)
            else:
                for command, expected in COMMAND.findall(block):
                    if command == "systemctl reload relay":
                        self.reload()
                        yield
                    else:
                        self._run(command, expected)

    def _run(self, command: str, expected: str) -> None:
        program, *words = shlex.split(command)
        assert program == "relay"
        config = self._relay.client_config() if words[0] == "send" else self._relay.config_file
        done = self._relay.cli(*words, "--config", str(config))
        assert done.returncode == (MISSING if words[0] == "dns" else 0), done
        wanted = expected.replace("/etc/relay", str(self._relay.folder))
        assert matches(wanted.rstrip("\n") + "\n", done.stdout), done.stdout
        self._publish(done.stdout)

    def reload(self) -> None:
        hang_up(self._relay, RELOADED)

    def end_first_key(self) -> None:
        """Let the last day of the first key be over."""
        self._config["dkim"][0]["until"] = str(datetime.now(UTC).date() - timedelta(days=1))
        self._relay.write_config(self._config)
        self.reload()

    def _publish(self, text: str) -> None:
        for name, strings in RECORD.findall(text):
            there = self._remotes.dns.zone.get(name, {})
            assert not isinstance(there, str)
            self._remotes.dns.zone[name] = {**there, "TXT": [strings]}

    def remove_record(self, name: str) -> None:
        del self._remotes.dns.zone[name]

    def received(self) -> bytes:
        """Return the only message that came, and forget it."""
        server = self._remotes.servers[0]
        [found] = until("mail", lambda: server.received(READER))
        server.envelopes.clear()
        return bytes(found.content)

    def sent(self) -> bytes:
        """Send another message; return what arrives."""
        content = f"From: alice@{DOMAIN}\r\nSubject: x\r\n\r\nx\r\n"
        self._relay.submit(f"alice@{DOMAIN}", [READER], content.encode())
        return self.received()

    @property
    def records(self) -> Mapping[str, bytes]:
        """The TXT records of the DNS, their strings joined."""
        return {
            name: "".join(re.findall(r'"(.*?)"', entry["TXT"][0])).encode()
            for name, entry in self._remotes.dns.zone.items()
            if not isinstance(entry, str) and "TXT" in entry
        }

    def selectors_that_pass(self, content: bytes) -> list[str]:
        """The selectors of the signatures of a message that passes DMARC; all of them hold."""
        header = message_from_bytes(content)
        author = parseaddr(header["From"])[1].partition("@")[2]
        assert self.records[f"_dmarc.{author}"].startswith(b"v=DMARC1; p=")
        found = verified(content, self.records)
        assert {domain for domain, _ in found} <= {author}
        return [selector for _, selector in found]


def test_the_steps_lead_to_mail_that_passes_dmarc(remotes: Remotes, serve) -> None:
    remotes.start("checker.example")
    remotes.dns.zone[DOMAIN] = {"MX": [f"10 relay.{DOMAIN}."]}
    remotes.dns.zone[f"relay.{DOMAIN}"] = {"A": ["192.0.2.1"]}
    last_day = str(datetime.now(UTC).date() + timedelta(days=30))
    relay = serve(remotes, config=CONFIG)
    administrator = Administrator(relay, remotes, last_day)
    assert b"DKIM-Signature" not in administrator.sent()
    assert list(administrator.follow("From no key to dmarc=pass")) == [None]
    assert administrator.selectors_that_pass(administrator.received()) == ["s1"]
    assert relay.cli("dns", DOMAIN).returncode == 0

    change = administrator.follow("Change a key")
    next(change)
    assert administrator.selectors_that_pass(administrator.sent()) == ["s1", "s2"]
    administrator.end_first_key()
    assert administrator.selectors_that_pass(administrator.sent()) == ["s2"]
    assert list(change) == [None]
    administrator.remove_record(f"s1._domainkey.{DOMAIN}")
    assert administrator.selectors_that_pass(administrator.sent()) == ["s2"]
    assert relay.faults() == []
