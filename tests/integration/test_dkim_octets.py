"""What leaves is what was signed, octet for octet, on each path: SMTP, LMTP, retries, restarts, releases, restores."""

import base64
import shutil
from pathlib import Path

import pytest

from tests.support.dkim import DkimKeys, signatures
from tests.support.relay_process import OPERATOR, RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received

ALICE, BOB = "alice@example.test", "bob@example.test"
LATER = "451 4.3.2 come again"
_HEADER = (
    "From: Alice <alice@example.test>\r\nSubject:   Grüße \t aus\r\n   Köln  \r\nTo: x@a.test\r\n"
    "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n"
).encode()
BODIES = {
    "dots": b".\r\n..\r\n.dots\r\n...\r\n \r\n.\t\r\n",
    "eight-bit": "Grüße \u20ac\r\n".encode() * 40,
    "long-lines": b"x" * 998 + b"\r\n." + b"y" * 997 + b"\r\n" + b"z" * 990 + b"\r\n",
    "white-space": b"  a \t b \t\r\n\t\r\n \r\n\r\n\r\nend \r\n\r\n \r\n\r\n",
    "empty": b"",
    "large": (b"." + b"x" * 60 + " \u20ac \r\n".encode()) * 24_000 + b"\r\n\r\n",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> DkimKeys:
    names = {("example.test", "rsa"): "rsa", ("example.test", "ed"): "ed25519"}
    return DkimKeys.made(tmp_path_factory.mktemp("dkim"), names)


@pytest.fixture(scope="module")
def smtp(remotes_module: Remotes) -> RemoteMx:
    return remotes_module.start("a.test")


@pytest.fixture(scope="module")
def lmtp(remotes_module: Remotes, smtp: RemoteMx) -> RemoteMx:
    return remotes_module.start("l.test", lmtp=True)


@pytest.fixture(scope="module")
def relay(
    remotes_module: Remotes, keys: DkimKeys, smtp: RemoteMx, lmtp: RemoteMx, serve_module
) -> RelayProcess:
    by_lmtp = {"domain": "l.test", "next_hop": f"lmtp://{lmtp.host}:{lmtp.port}"}
    config = {"route": [by_lmtp, {"domain": "held.test", "next_hop": "hold"}]}
    return serve_module(remotes_module, config=keys.config | config)


def source(relay: RelayProcess, key: str) -> bytes:
    """The content in the queue."""
    answer = relay.graph("GET", f"/relay/v1/messages/{key}/source", token=OPERATOR)
    assert answer.status == 200, answer.body
    return answer.body


def file_of(relay: RelayProcess, person: str, wanted: bytes) -> bytes:
    """The file in a Maildir, without the fields of its delivery."""

    def found() -> list[bytes]:
        files = [one.read_bytes() for one in relay.home(person).glob("[nc]*/*")]
        return [one for one in files if wanted in one]

    [octets] = until("delivered", found)
    while octets.startswith((b"Return-Path:", b"Delivered-To:", b"X-Relay-Id:")):
        octets = octets.partition(b"\r\n")[2]
    return octets


@pytest.mark.parametrize("name", BODIES)
def test_by_smtp_by_lmtp_and_in_a_maildir(
    relay: RelayProcess, keys: DkimKeys, smtp: RemoteMx, lmtp: RemoteMx, name: str
) -> None:
    marked = f"X-Marked: {name}\r\n".encode()
    sent = _HEADER + marked + b"\r\n" + BODIES[name]
    addresses = [f"{name}@a.test", f"{name}@l.test", f"{name}@held.test", BOB]
    key = relay.submit(ALICE, addresses, sent, mail_options=["BODY=8BITMIME"])
    signed = source(relay, key)
    assert signed.endswith(sent)
    assert signed.startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
    assert keys.verified(signed) == keys.of_domain("example.test")
    assert received(smtp, addresses[0]).content == signed
    assert received(lmtp, addresses[1]).content == signed
    assert file_of(relay, "bob", marked) == signed


@pytest.mark.parametrize("end", [b"", b"\r\n", b"no end", b"\nbare\n.\nends", b"\xfc\r\n"])
def test_mime_by_graph_without_a_final_line_end(
    relay: RelayProcess, keys: DkimKeys, smtp: RemoteMx, end: bytes
) -> None:
    mark = b"X-Marked: graph " + end.hex().encode() + b"\r\n"
    to = f"graph{end.hex()}@a.test"
    content = (
        _HEADER.replace(b"x@a.test", f"{to}, {BOB}, h@held.test".encode()) + mark + b"\r\n.a" + end
    )
    sent, plain = base64.b64encode(content), {"Content-Type": "text/plain"}
    answer = relay.graph("POST", "/me/sendMail", sent, headers=plain)
    assert answer.status == 202, answer.body
    octets = received(smtp, to).content
    signed = source(relay, str(answer.headers["x-relay-message-id"]))
    assert octets == signed == file_of(relay, "bob", mark)
    assert octets.endswith(b"\r\n")
    assert keys.verified(octets) == keys.of_domain("example.test")


def test_after_retries_a_kill_a_release_and_another_next_hop(
    remotes_module: Remotes, keys: DkimKeys, tmp_path: Path, serve
) -> None:
    busy = remotes_module.start("busy.test", rcpt={"x@busy.test": LATER})
    other = remotes_module.start("other.test")
    config = keys.config | {"route": [{"domain": "held.test", "next_hop": "hold"}]}
    sent = {name: _HEADER + b"\r\n" + BODIES[name] for name in ("white-space", "large")}
    addresses = ["x@busy.test", "released@held.test", "rerouted@held.test"]
    relay = serve(remotes_module, config=config)
    signed = {}
    for content in sent.values():
        key = relay.submit(ALICE, addresses, content, mail_options=["BODY=8BITMIME"])
        signed[key] = source(relay, key)
        assert keys.verified(signed[key]) == keys.of_domain("example.test")
    relay.restart()
    until("it is tried again", lambda: busy.commands.count("RCPT TO:<x@busy.test>") > 5)
    del busy.rcpt["x@busy.test"]
    until("it arrives", lambda: len(busy.received("x@busy.test")) == 2)
    done = relay.cli("backup", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    relay.stop()
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name)
    done = relay.cli("restore", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    relay.start()
    assert [source(relay, key) for key in signed] == list(signed.values())
    for key in signed:
        relay.cli("queue", "reroute", key, "--to", f"smtp://{other.host}:{other.port}")
    relay.cli("queue", "release", "--all")
    until("all of it arrives", lambda: len(other.received("rerouted@held.test")) == 2)
    expected = sorted(signed.values())
    for host, address in ((busy, addresses[0]), (other, addresses[1]), (other, addresses[2])):
        assert sorted(one.content for one in host.received(address)) == expected
    assert [signatures(one) for one in expected] == [2, 2]
    assert relay.faults() == []
