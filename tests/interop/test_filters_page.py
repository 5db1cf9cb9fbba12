"""docs/filters.md: rspamd, ClamAV, OpenDKIM and OpenDMARC with the files that are printed there.

One relay, whose list of milters a reload replaces.
"""

import re
import smtplib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import dkim
import pytest

from tests.interop.conftest import missing
from tests.support.dkim import DkimKeys
from tests.support.dns_server import DnsThread
from tests.support.filter_programs import EICAR, FilterPrograms, NoFilterError
from tests.support.relay_process import ROOT, WAIT_S, RelayProcess, until

PAGE = (ROOT / "docs/filters.md").read_text()
BLOCKS = re.findall(r"^```(?:toml)?\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {name.removeprefix("/etc/"): text for name, text in BLOCKS if name.startswith("/etc/")}
RULES = {Path(name).name: text for name, text in BLOCKS if name.startswith("policies/")}
CONFIG = "".join(text for name, text in BLOCKS if name == "relay.toml")
SHIPPED = "85-dmarc.toml"
RECORDS = {"_dmarc.strict.test": "v=DMARC1; p=reject", "strict.test": "v=spf1 ip4:192.0.2.7 -all"}
# a proxy tells who it is: the filters trust whatever comes from loopback
STRANGER = b"PROXY TCP4 192.0.2.7 192.0.2.1 4444 25\r\n"
GTUBE = "JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


class Proxied(smtplib.SMTP):
    """A client elsewhere."""

    def _get_socket(self, host, port, timeout):
        found = super()._get_socket(host, port, timeout)
        found.sendall(STRANGER)
        return found


@dataclass
class Filtered:
    relay: RelayProcess
    programs: FilterPrograms
    keys: DkimKeys

    def use(self, *names: str) -> None:
        """Let the relay ask these milters, in the order of the page."""
        every = tomllib.loads(self.programs.here(CONFIG))["milter"]
        milters = [one for one in every if one["name"] in names]
        assert len(milters) == len(names)
        self.relay.write_config(self.relay.config | {"milter": milters})
        done = self.relay.cli("reload")
        assert done.returncode == 0, done.stderr

    def deliver(self, message: EmailMessage | bytes) -> tuple[int, str]:
        """Send a message; return the reply."""
        with Proxied(*self.relay.smtp_address(), "client.test", WAIT_S) as client:
            client.ehlo()
            client.mail("ann@strict.test")
            client.rcpt("bob@example.test")
            code, text = client.data(bytes(message))
        return code, text.decode()

    def send(self, message: EmailMessage | bytes) -> dict[str, Any]:
        """Send a message; return the final journey."""
        code, text = self.deliver(message)
        assert code == 250, text
        return self.relay.until_final(text.rpartition(" ")[2])

    def signed(self, message: EmailMessage) -> bytes:
        [key] = self.keys.ring.keys
        octets = bytes(message)
        return (
            dkim.sign(octets, key.selector.encode(), key.domain.encode(), key.file.read_bytes())
            + octets
        )

    def stored(self, subject: str, folder: str = "") -> Any:
        """The message of a subject in bob's mailbox."""
        [found] = [one for one in self.relay.maildir("bob", folder) if one["Subject"] == subject]
        return found


@pytest.fixture(scope="module")
def filtered(tmp_path_factory) -> Iterator[Filtered]:
    keys = DkimKeys.made(tmp_path_factory.mktemp("keys"), {("strict.test", "key"): "rsa"})
    rule = (ROOT / "policies" / SHIPPED).read_text()
    policies = {**RULES, SHIPPED: rule.replace('mode = "off"', 'mode = "enforce"')}
    zone = {name: {"TXT": [f'"{text}"']} for name, text in RECORDS.items()}
    zone["strict.test"]["MX"] = ["10 client.test"]
    zone["client.test"] = {"A": ["192.0.2.7"]}
    zone["7.2.0.192.in-addr.arpa"] = {"PTR": ["client.test"]}
    with DnsThread(zone) as dns:
        try:
            programs = FilterPrograms(
                FILES,
                dns=dns.address,
                policies=RECORDS,
                keys={name: text.decode() for name, text in keys.records.items()},
            )
            listener = {"listen": "127.0.0.1:0", "proxy_networks": ["127.0.0.1/32"]}
            config = {"smtp": [listener]}
            with programs, RelayProcess(dns=dns.address, config=config, policies=policies) as relay:
                yield Filtered(relay, programs, keys)
        except NoFilterError as why:
            missing(why)


def mail(subject: str, text: str = "Hello\n") -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"] = "ann@strict.test", "bob@example.test"
    message["Subject"] = subject
    message["Date"], message["Message-ID"] = "Thu, 26 Nov 2026 09:00:00 +0000", "<1@strict.test>"
    message.set_content(text)
    return message


@pytest.mark.parametrize("name", ["clamav-milter", "opendkim", "opendmarc"])
def test_systemd_finds_the_process_of_a_filter(filtered: Filtered, name: str) -> None:
    """Debian's units wait for a file of this name with the process."""
    [text] = [text for file, text in FILES.items() if Path(file).stem == name]
    folder = "clamav" if name == "clamav-milter" else name
    assert f"\nPidFile /run/{folder}/{name}.pid\n" in text
    file = filtered.programs.folder / f"{name}.pid"
    written = until("it is written", lambda: file.exists() and file.read_text().strip())
    assert int(written) == filtered.programs.processes[name].pid


def test_clamav_refuses_a_virus(filtered: Filtered) -> None:
    filtered.use("clamav")
    infected = mail("virus")
    infected.add_attachment(EICAR, maintype="application", subtype="octet-stream", filename="a.bin")
    assert filtered.deliver(infected) == (550, "5.7.1 Virus found: Eicar-Test.UNOFFICIAL")
    [one] = filtered.relay.cli_json("trace", "ann@strict.test")["refused"][-1:]
    assert one["reason"] == "milter"
    filtered.send(mail("no virus"))
    assert filtered.stored("no virus")["X-Virus-Status"] == "Clean"


def test_rspamd_refuses_spam_and_marks_what_is_suspicious(filtered: Filtered) -> None:
    filtered.use("rspamd")
    assert filtered.deliver(mail("spam", f"X{GTUBE}\n")) == (554, "5.7.1 Gtube pattern")
    filtered.send(mail("suspicious", f"Y{GTUBE}\n"))
    assert filtered.stored("suspicious", "Junk")["X-Spam"] == "Yes"
    journey = filtered.send(mail("no spam"))
    found = filtered.stored("no spam")
    assert found["X-Spam"] is None
    assert found["Authentication-Results"].startswith("relay.example.test;")
    [step] = [one for one in journey["steps"] if one["step"] == 5]
    [said] = step["detail"]["milters"]
    assert (said["name"], said["stage"], said["answer"]) == ("rspamd", "end of message", "accept")
    assert "insert Authentication-Results" in said["changes"]


def test_opendmarc_believes_opendkim_and_nobody_else(filtered: Filtered) -> None:
    filtered.use("opendkim", "opendmarc")
    forged = mail("forged")
    forged["Authentication-Results"] = (
        "relay.example.test; dkim=pass header.d=strict.test; dmarc=pass"
    )
    journey = filtered.send(forged)
    assert journey["checks"]["dmarc"]["result"] == "fail"
    assert "dmarc=pass" not in filtered.stored("forged", "Junk").as_string()

    journey = filtered.send(filtered.signed(mail("signed")))
    assert journey["checks"]["dmarc"]["result"] == "pass"
    results = " ".join(filtered.stored("signed").get_all("Authentication-Results"))
    assert "dkim=pass" in results
    assert "header.d=strict.test" in results
    assert "dmarc=pass" in results


def test_relay_check_reaches_all(filtered: Filtered) -> None:
    filtered.use("rspamd", "clamav", "opendkim", "opendmarc")
    found = [one for one in filtered.relay.cli_json("check") if one["check"] == "milter"]
    assert [one["verdict"] for one in found] == ["ok"] * 4
    filtered.send(filtered.signed(mail("all")))
    assert filtered.stored("all")["X-Virus-Status"] == "Clean"
    until("no entry", lambda: not filtered.relay.queue())
