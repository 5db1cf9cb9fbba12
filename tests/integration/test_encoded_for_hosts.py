"""8-bit content and long lines through a relay: what hosts without 8BITMIME or SMTPUTF8 get, and what the journey says."""

import email
from email.message import Message
from pathlib import Path

import pytest

from tests.support.dkim import DkimKeys, signatures
from tests.support.opendkim import NoOpenDkimError, held_by_opendkim
from tests.support.relay_process import OPERATOR, RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received

ALICE, BOB = "alice@example.test", "bob@example.test"
HEADER = "From: Alice <alice@example.test>\r\nSubject: Grüße\r\nTo: Jürgen <x@a.test>\r\nMIME-Version: 1.0\r\n".encode()
TEXT = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
MIXED = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
END = b"\r\n--b--\r\n"
LONG = b"y" * 5000 + b"\r\n"
BODIES = {
    "text": TEXT + "Grüße\r\n.\r\n".encode(),
    "mixed": MIXED
    + TEXT
    + "ü\r\n".encode()
    + b"\r\n--b\r\nContent-Type: image/png\r\n\r\n\xff\xfe"
    + END,
    "attached": MIXED
    + b"Content-Type: message/rfc822\r\n\r\nSubject: a\r\n"
    + TEXT
    + "ü".encode()
    + END,
    "large": TEXT + "Grüße aus Köln \u20ac\r\n".encode() * 20_000,
    "long": TEXT + b"y" * 900_000 + "\r\nü\r\n".encode(),
    "large-long": TEXT + "Grüße\r\n".encode() * 50_000 + LONG,
}
SIGNED = MIXED.replace(b"mixed", b"signed") + b"\r\n%b\r\n--b\r\n\r\nsignature" + END


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> DkimKeys:
    return DkimKeys.made(tmp_path_factory.mktemp("dkim"), {("example.test", "rsa"): "rsa"})


@pytest.fixture(scope="module")
def hosts(remotes_module) -> dict[str, RemoteMx]:
    """Hosts by what they offer; the last one speaks LMTP."""
    start = remotes_module.start
    return {
        "full.test": start("full.test"),
        "eight.test": start("eight.test", extensions=("8BITMIME", "PIPELINING", "SIZE")),
        "bare.test": start("bare.test", extensions=("SIZE 4000000",)),
        "lmtp.test": start("lmtp.test", extensions=("PIPELINING",), lmtp=True),
    }


@pytest.fixture(scope="module")
def relay(remotes_module, hosts, keys: DkimKeys, serve_module) -> RelayProcess:
    lmtp = hosts["lmtp.test"]
    route = {"domain": "lmtp.test", "next_hop": f"lmtp://{lmtp.host}:{lmtp.port}"}
    aliases = {"list@example.test": ["x@bare.test"]}
    return serve_module(remotes_module, config=keys.config | {"route": [route]}, aliases=aliases)


def attempts(relay: RelayProcess, key: str) -> dict[str, dict[str, object]]:
    document = relay.cli_json("trace", key)
    return {one["address"]: one["attempts"][-1] for one in document["recipients"]}


def leaves(octets: bytes) -> list[Message]:
    found = [one for one in email.message_from_bytes(octets).walk() if not one.is_multipart()]
    assert not any(one.defects for one in found)
    return found


@pytest.mark.parametrize("name", BODIES)
def test_each_host_gets_what_it_takes_with_a_signature_that_holds(
    relay: RelayProcess, hosts: dict[str, RemoteMx], keys: DkimKeys, tmp_path: Path, name: str
) -> None:
    sent = HEADER + BODIES[name]
    to = {domain: f"{name}@{domain}" for domain in hosts}
    options = ["BODY=8BITMIME", "SMTPUTF8"]
    key = relay.submit(ALICE, [*to.values(), f"{name}2@bare.test", BOB], sent, mail_options=options)
    relay.until_final(key)
    got = {domain: received(hosts[domain], address) for domain, address in to.items()}
    whole = got["full.test"].content
    assert whole.endswith(sent) or name.endswith("long")
    for domain, one in got.items():
        is_bare = domain in ("bare.test", "lmtp.test")
        octets = one.content
        assert octets.isascii() == is_bare or name.endswith("long")
        assert octets.partition(b"\r\n\r\n")[0].isascii() == (domain != "full.test")
        assert max(map(len, octets.split(b"\r\n"))) <= 998
        decoded = [part.get_payload(decode=True) for part in leaves(octets)]
        assert decoded == [part.get_payload(decode=True) for part in leaves(sent)]
        assert signatures(octets) == 1
        assert keys.verified(octets) == keys.of_domain("example.test")
        assert one.parameters.get("SIZE", str(len(octets))) == str(len(octets))
        assert one.parameters.get("BODY") == (None if is_bare else "8BITMIME")
        assert ("SMTPUTF8" in one.parameters) == (domain == "full.test")
    found = {address: one["encoded"] for address, one in attempts(relay, key).items()}
    wanted = dict.fromkeys(to.values(), "8 bit") | {BOB: "", f"{name}2@bare.test": "8 bit"}
    assert found == wanted | {to["full.test"]: "long lines" if name.endswith("long") else ""}
    try:
        held = held_by_opendkim(tmp_path, [one.content for one in got.values()], keys.records)
    except NoOpenDkimError as missing:
        pytest.skip(str(missing))
    assert held == [True] * len(got)


@pytest.mark.parametrize(
    ("content", "domain", "status"),
    [
        (HEADER + SIGNED % "ü".encode(), "bare.test", "5.6.3"),
        (HEADER + SIGNED % LONG, "full.test", "5.6.0"),
        (HEADER + "Cc: ü@x.test\r\n\r\na\r\n".encode(), "eight.test", "5.6.9"),
        (HEADER + TEXT + ("ü" * 70 + "\r\n").encode() * 10_000, "bare.test", "5.3.4"),
    ],
)
def test_what_cannot_be_encoded_is_failed(
    relay: RelayProcess, content: bytes, domain: str, status: str
) -> None:
    key = relay.submit(ALICE, [f"no@{domain}"], content, mail_options=["BODY=8BITMIME"])
    relay.until_final(key)
    [attempt] = attempts(relay, key).values()
    assert (attempt["outcome"], attempt["status"]) == ("failed", status)


def test_mail_of_a_stranger_gets_no_signature_and_keeps_that_of_its_author(
    relay: RelayProcess, hosts: dict[str, RemoteMx]
) -> None:
    content = b"DKIM-Signature: v=1; d=far.test; b=x\r\nFrom: a@far.test\r\n\r\n\xfc\r\n"
    relay.submit("a@far.test", ["list@example.test"], content, source="127.0.0.2")
    octets = received(hosts["bare.test"], "x@bare.test").content
    assert octets.startswith(b"Delivered-To: list@example.test\r\nReceived: ")
    assert b"\r\nDKIM-Signature: v=1; d=far.test; b=x\r\n" in octets
    assert octets.endswith(b"charset=unknown-8bit\r\n\r\n=FC\r\n")
    assert signatures(octets) == 1


def test_a_report_that_returns_8_bit_content_is_encoded(
    relay: RelayProcess, hosts: dict[str, RemoteMx], keys: DkimKeys
) -> None:
    hosts["eight.test"].rcpt["gone@eight.test"] = "550 5.1.1 unknown"
    relay.submit(
        "x@lmtp.test", ["gone@eight.test"], HEADER + BODIES["text"], mail_options=["BODY=8BITMIME"]
    )
    octets = received(hosts["lmtp.test"], "x@lmtp.test").content
    assert octets.isascii()
    assert "Grüße\r\n.\r\n".encode() in [one.get_payload(decode=True) for one in leaves(octets)]


def test_without_its_key_it_is_sent_unsigned(
    remotes_module: Remotes, hosts: dict[str, RemoteMx], keys: DkimKeys, serve
) -> None:
    bare = hosts["bare.test"]
    bare.rcpt["later@bare.test"] = "451 4.3.2 come again"
    relay = serve(remotes_module, config=keys.config)
    key = relay.submit(
        ALICE, ["later@bare.test"], HEADER + BODIES["text"], mail_options=["BODY=8BITMIME"]
    )
    until("it is tried", lambda: bare.commands.count("RCPT TO:<later@bare.test>") > 0)
    relay.stop()
    relay.write_config({name: one for name, one in relay.config.items() if name != "dkim"})
    del bare.rcpt["later@bare.test"]
    relay.start()
    octets = received(bare, "later@bare.test").content
    assert signatures(octets) == 0
    assert octets.isascii()
    source = relay.graph("GET", f"/relay/v1/messages/{key}/source", token=OPERATOR)
    assert source.status != 200 or signatures(source.body) == 1
    assert "encoded again, and not signed" in relay.log
