"""What other programs make of Relay's signatures: dkimpy and OpenDKIM, with many kinds of messages."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import dkim
import pytest

from relay.base.message.content import Content, LargeContent, MemoryOctets, read_all
from relay.base.message.header import ParsedContent
from relay.base.observe.metrics import Metrics
from relay.transport.signing import signature
from relay.transport.signing.keys import KeyRing
from relay.transport.signing.signer import Signer
from tests.support.dkim import DkimKeys, foreign, signatures, verified
from tests.support.long_tests import long
from tests.support.manual_clock import ManualClock
from tests.support.opendkim import NoOpenDkimError, held_by_opendkim

BATCH = 40
WORDS = ["hello", "a", "Grüße", "x" * 200, "=?utf-8?q?x=20y?=", ".", "..", "From me", "7", "-- "]
WHITE = [" ", "  ", "\t", " \t ", "\t\t", ""]
FIELDS = [
    "Subject",
    "To",
    "Cc",
    "Date",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "Reply-To",
    "X-Other",
    "Received",
    "Resent-From",
    "Sender",
    "List-Id",
]
LISTED = ["From", "To", "Subject", "Reply-To", "List-Unsubscribe", "Content-Type"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> DkimKeys:
    folder = tmp_path_factory.mktemp("keys")
    return DkimKeys.made(folder, {("example.test", "s1"): "rsa", ("example.test", "s2"): "ed25519"})


def signed(ring: KeyRing, content: Content) -> bytes:
    signer = Signer(lambda: ring, clock=ManualClock(), metrics=Metrics())
    done = signer.sign_report(ParsedContent.of(content))
    assert [key.name for key in done.keys] == [key.name for key in ring.keys], done.unsigned
    octets = read_all(done.contents[0].joined())
    assert octets.endswith(read_all(content))
    return octets if octets.endswith(b"\r\n") else octets + b"\r\n"  # as SMTP sends it


def text(rng: random.Random, words: int) -> str:
    return "".join(rng.choice(WORDS) + rng.choice(WHITE) for _ in range(words))


def field(rng: random.Random, name: str, value: str) -> str:
    """A field in odd case, folded at some places."""
    shown = rng.choice([name, name.upper(), name.lower(), name.title()])
    value = "".join(f"\r\n{one}" if one in " \t" and rng.random() < 0.2 else one for one in value)
    return f"{shown}:{rng.choice(WHITE)}{value}{rng.choice(WHITE)}\r\n"


def header(rng: random.Random) -> bytes:
    fields = [field(rng, "From", rng.choice(["Ada <ada@example.test>", "ada@Mail.Example.TEST"]))]
    for _ in range(rng.randrange(12)):
        value = text(rng, 1 + rng.randrange(6)).strip() or "x"
        fields.append(field(rng, rng.choice(FIELDS), value))
    rng.shuffle(fields)
    return "".join(fields).encode()


def body(rng: random.Random) -> bytes:
    lines = [text(rng, rng.randrange(8)) for _ in range(rng.randrange(20))]
    lines += [rng.choice(["", " ", "\t ", "end"]) for _ in range(rng.randrange(4))]
    octets = "".join(f"{line}\r\n" for line in lines).encode(
        rng.choice(["utf-8", "latin-1"]), "replace"
    )
    return octets if rng.random() < 0.8 else octets.removesuffix(b"\r\n")


def message(rng: random.Random, keys: DkimKeys) -> bytes:
    made = header(rng)
    if rng.random() < 0.02:  # no body, nor a blank line
        return made
    made += b"\r\n" + body(rng)
    for _ in range(rng.choice([0] * 20 + [1, 3, 20])):
        made = foreign(made, keys.ring.keys[0])
    return made


def changed(rng: random.Random, octets: bytes) -> Iterator[bytes]:
    """Yield the message with one octet of the body changed, and with a further field that is listed."""
    start = octets.find(b"\r\n\r\n") + 4
    places = [at for at in range(start, len(octets)) if octets[at : at + 1].isalnum()]
    if start > 3 and places:
        at = rng.choice(places)
        yield octets[:at] + (b"y" if octets[at : at + 1] != b"y" else b"z") + octets[at + 1 :]
    end = octets.index(b"\r\nFrom:") + 2 if b"\r\nFrom:" in octets else 0
    extra = rng.choice(LISTED).encode() + b": eve@other.test\r\n"
    yield octets[:end] + extra + octets[end:]


def holds(octets: bytes, keys: DkimKeys, number: int) -> bool:
    def record(name: bytes, timeout: int = 5) -> bytes | None:
        return keys.records.get(name.decode().rstrip("."))

    try:
        return bool(dkim.DKIM(octets).verify(number, dnsfunc=record))
    except dkim.DKIMException:
        return False


def check(seed: int, keys: DkimKeys, folder: Path) -> None:
    """A batch of messages that hold, and changes of each that do not."""
    rng, made = random.Random(seed), []
    for _ in range(BATCH):
        content = message(rng, keys)
        made.append(octets := signed(keys.ring, content))
        assert verified(octets, keys.records)[:2] == [
            ("example.test", "s1"),
            ("example.test", "s2"),
        ]
        for other in changed(rng, octets):
            assert not holds(other, keys, 0)
            assert not holds(other, keys, 1)
    try:
        held = held_by_opendkim(folder, made, keys.records)
        assert [made[at] for at, one in enumerate(held) if not one] == []
        own = [octets for octets in made if signatures(octets) == 2]  # any that holds is enough
        for octets in own[:: BATCH // 2]:
            for other in changed(rng, octets):
                assert held_by_opendkim(folder, [other], keys.records) == [False]
    except NoOpenDkimError as missing:
        pytest.skip(str(missing))


def test_receivers_agree(keys: DkimKeys, tmp_path: Path) -> None:
    check(1, keys, tmp_path)


@long
@pytest.mark.parametrize("seed", range(2, 51))
def test_receivers_agree_on_many_messages(keys: DkimKeys, tmp_path: Path, seed: int) -> None:
    check(seed, keys, tmp_path)


def test_a_blank_before_the_colon(keys: DkimKeys, tmp_path: Path) -> None:
    content = b"From: ada@example.test\r\nSUBJECT :\r\n\tx  y\r\n\r\nhello\r\n"
    octets = signed(keys.ring, content)  # dkimpy refuses them (RFC 5322 4.5.8 allows them)
    try:
        changed = octets.replace(b"x  y", b"x  z")
        assert held_by_opendkim(tmp_path, [octets, changed], keys.records) == [True, False]
    except NoOpenDkimError as missing:
        pytest.skip(str(missing))


LARGE: dict[str, Callable[[], bytes]] = {
    "lines": lambda: b"some words  in a line \r\n" * 20_000,
    "empty lines at the end": lambda: b"a" * 350_000 + b"\r\n" * 20_000,
    "empty lines within": lambda: b"a\r\n" + b"\r\n" * 200_000 + b"b \r\n",
    "no final CRLF": lambda: b"a  b" * 100_000,
    "only empty lines": lambda: b"\r\n" * 200_000,
}


@pytest.mark.parametrize("kind", LARGE)
def test_they_agree_on_large_bodies(keys: DkimKeys, tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setattr(signature, "LARGE_BYTES", 350_000)
    octets = b"\r\n" + LARGE[kind]()
    cuts = [0, 1, 2, 3, 4, 70_001, 70_002, 300_003, len(octets)]  # also between CR and LF
    pieces = tuple(MemoryOctets(octets[start:end]) for start, end in itertools.pairwise(cuts))
    head = b"From: ada@example.test\r\nSubject: large\r\n"
    made = signed(keys.ring, LargeContent(head, pieces, eight_bit=False))
    assert b"c=relaxed/simple" in made[:200]
    assert len(verified(made, keys.records)) == 2
    assert not holds(made.replace(b"Subject: large", b"Subject: other"), keys, 0)
    try:
        assert held_by_opendkim(tmp_path, [made], keys.records) == [True]
    except NoOpenDkimError as missing:
        pytest.skip(str(missing))
