"""HAProxy in front of the relay: it names its client by a PROXY header, and passes TLS on.

tests/system-packages.sh unpacks it. The tests' clients are on loopback, so HAProxy is told which address to name;
where it is not, it names loopback, which is trusted nowhere.
"""

import os
import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess, until
from tests.support.tls import Authority, authority
from tests.support.unpacked import UNPACKED, unpacked_libraries

__all__ = ["authority"]

PLAIN, IMPLICIT = 0, 1
OFFICE, STRANGER = "198.51.100.7", "203.0.113.9"


class Front:
    """A relay that trusts OFFICE, and ports of HAProxy by how it names which client."""

    def __init__(self, relay: RelayProcess, ports: dict[tuple[str, int, str], int]) -> None:
        self.relay, self.ports = relay, ports

    def session(self, way: str, listener: int, client: str, trust: Path) -> smtplib.SMTP:
        context = ssl.create_default_context(cafile=trust)
        port = self.ports[way, listener, client]
        if listener == IMPLICIT:
            return smtplib.SMTP_SSL("localhost", port, "client.test", timeout=20, context=context)
        return smtplib.SMTP("localhost", port, "client.test", timeout=20)


@pytest.fixture(scope="module")
def front(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    found = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or UNPACKED / "sbin/haproxy"
    if not Path(found).exists():
        pytest.skip("haproxy is not installed: tests/system-packages.sh")
    tables = [
        {"certificate": str(made.certificate), "key": str(made.key)}
        for made in (authority.issue("DNS:other.test"), authority.issue("DNS:localhost"))
    ]
    listener = {
        "listen": "127.0.0.1:0",
        "tls": tables,
        "proxy_networks": ["127.0.0.0/8"],
        "trusted_networks": ["127.0.0.0/8", f"{OFFICE}/32"],
    }
    config = {"smtp": [listener, listener | {"role": "submissions"}]}
    folder = tmp_path_factory.mktemp("haproxy")
    with RelayProcess(config=config) as relay:
        ports, text = (
            {},
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n",
        )
        for number in (PLAIN, IMPLICIT):
            host, at = relay.smtp_address(number)
            for way in ("send-proxy", "send-proxy-v2"):
                for client in (OFFICE, STRANGER, ""):
                    ports[way, number, client] = free_port()
                    named = f" tcp-request connection set-src str({client})\n" if client else ""
                    text += f"listen x{len(ports)}\n bind 127.0.0.1:{ports[way, number, client]}\n{named}"
                    text += f" server relay {host}:{at} {way} check check-send-proxy inter 200\n"
        (folder / "haproxy.cfg").write_text(text)
        process = subprocess.Popen(
            [found, "-db", "-f", folder / "haproxy.cfg"], env=os.environ | unpacked_libraries()
        )
        try:
            front = Front(relay, ports)
            until("HAProxy answers", lambda: process.poll() is not None or answers(front))
            assert process.poll() is None
            yield front
        finally:
            process.terminate()
            process.wait(15)


def answers(front: Front) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", front.ports["send-proxy-v2", PLAIN, STRANGER], timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("listener", [PLAIN, IMPLICIT])
@pytest.mark.parametrize("way", ["send-proxy", "send-proxy-v2"])
def test_the_client_of_the_proxy_counts(
    front: Front, authority: Authority, way: str, listener: int
) -> None:
    """TLS at once passes through, with the name by which the relay chooses the certificate."""
    for client, code in ((OFFICE, 250), (STRANGER, 550), ("", 550)):
        with front.session(way, listener, client, authority.certificate) as session:
            session.ehlo("client.test")
            mail = session.mail("a@remote.test")
            if listener == IMPLICIT and code == 550:
                assert mail[0] == 530
                session.login("alice@example.test", "alice")
                session.mail("alice@example.test")
                assert session.rcpt("c@d.test")[0] == 250
            else:
                assert (mail[0], session.rcpt("c@d.test")[0]) == (250, code)


def test_the_journey_has_the_client(front: Front, authority: Authority) -> None:
    with front.session("send-proxy-v2", PLAIN, STRANGER, authority.certificate) as session:
        session.starttls(context=ssl.create_default_context(cafile=authority.certificate))
        session.sendmail("a@remote.test", ["bob@example.test"], "Subject: behind\n\nx\n")
    until("delivered", lambda: front.relay.subjects("bob") == ["behind"])
    assert f"[{STRANGER}]" in str(front.relay.maildir("bob")[0]["Received"])
    for noise in ("no PROXY header", "spoke before the greeting", "handshake failed"):
        assert noise not in front.relay.log  # of HAProxy's checks
