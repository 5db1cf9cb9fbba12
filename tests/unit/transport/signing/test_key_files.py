"""Keys of [[dkim]]: what is wrong with a file, and when a key ends."""

import base64
import os
import random
import subprocess
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from relay.base.message.header import ParsedContent
from relay.base.observe.metrics import Metrics
from relay.base.settings.document import SettingsError
from relay.base.settings.tree import DkimKey
from relay.transport.signing.key_files import load_keys
from relay.transport.signing.private_keys import EXPECTED, new_key, read_pem, write_pem
from relay.transport.signing.signer import Signer
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ED25519 = write_pem(new_key("ed25519"))
RSA_1024 = write_pem(new_key("rsa", bits=1024))
CONFIG = 'hostname = "relay.example.test"\n'
LARGE_BITS = 4484


@cache
def rsa_pem(bits: int) -> bytes:
    if bits == LARGE_BITS:
        return large_rsa_pem()
    made = subprocess.run(["openssl", "genrsa", str(bits)], capture_output=True, check=True)
    return made.stdout


def large_rsa_pem() -> bytes:
    """A key of two known primes (Mersenne's): to find others of that size takes many seconds."""
    p, q = (1 << 2281) - 1, (1 << 2203) - 1
    d = pow(65537, -1, (p - 1) * (q - 1))
    crt = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, *crt, public)
    return pem(numbers.private_key(unsafe_skip_rsa_key_validation=True))


def pem(key, form=PrivateFormat.PKCS8, *, passphrase: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption)


def public_pem() -> bytes:
    key = load_pem_private_key(RSA_1024, None).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def damaged_pem() -> bytes:
    """A key whose private half belongs to another public one."""
    der = bytearray(base64.b64decode(b"".join(RSA_1024.splitlines()[1:-1])))
    numbers = load_pem_private_key(RSA_1024, None).private_numbers()
    modulus = numbers.public_numbers.n.to_bytes(128, "big")
    der[der.index(modulus) + 64] ^= 1
    text = base64.encodebytes(der)
    return b"-----BEGIN PRIVATE KEY-----\n" + text + b"-----END PRIVATE KEY-----\n"


class Folder:
    """A configuration with one entry for each file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "relay.toml"

    def file(self, name: str, content: bytes, *, mode: int = 0o600) -> Path:
        file = self.path / name
        file.write_bytes(content)
        file.chmod(mode)
        return file

    def load(self, *files: Path, until: str = ""):
        entries, lines = [], [CONFIG]
        for number, file in enumerate(files):
            entries.append(DkimKey("example.test", f"s{number}", file, until))
            lines.append(
                f'[[dkim]]\ndomain = "example.test"\nselector = "s{number}"\nkey = "{file}"\n'
            )
        self.config.write_text("".join(lines))
        return load_keys(entries, self.config)

    def faults(self, *files: Path) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            self.load(*files)
        return [str(one).removeprefix(f"{self.path}/") for one in caught.value.faults]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "algorithm", "bits"),
    [
        (ED25519, "ed25519-sha256", 256),
        (RSA_1024, "rsa-sha256", 1024),
        (
            pem(load_pem_private_key(RSA_1024, None), PrivateFormat.TraditionalOpenSSL),
            "rsa-sha256",
            1024,
        ),
        (b"a key\r\n" + public_pem() + ED25519.replace(b"\n", b"\r\n"), "ed25519-sha256", 256),
    ],
    ids=["Ed25519", "PKCS 8", "PKCS 1", "text, a public key and CRLF"],
)
def test_a_key_is_read(folder, content, algorithm, bits):
    file = folder.file("s.pem", content)
    [key] = folder.load(file).keys
    assert (key.private.algorithm, key.private.bits, key.file) == (algorithm, bits, file)
    assert key.name == "s0._domainkey.example.test"


@each_row(
    "content, found",
    [
        (b"", "no key"),
        (b"\0\xff" * 1000, "no key"),
        (ED25519[:60], '"BEGIN PRIVATE KEY" and no private key that can be read'),
        (RSA_1024[:500], '"BEGIN PRIVATE KEY" and no private key that can be read'),
        (public_pem(), '"BEGIN PUBLIC KEY" and no private key that can be read'),
        (
            b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            '"BEGIN CERTIFICATE" and no private key that can be read',
        ),
        (
            pem(load_pem_private_key(RSA_1024, None), PrivateFormat.OpenSSH),
            '"BEGIN OPENSSH PRIVATE KEY" and no private key that can be read',
        ),
        (
            pem(load_pem_private_key(RSA_1024, None), passphrase=b"x"),
            "a private key with a passphrase",
        ),
        (
            pem(
                load_pem_private_key(RSA_1024, None),
                PrivateFormat.TraditionalOpenSSL,
                passphrase=b"x",
            ),
            "a private key with a passphrase",
        ),
        (pem(ec.generate_private_key(ec.SECP256R1())), "a private key of the kind EC"),
        (pem(ed448.Ed448PrivateKey.generate()), "a private key of the kind Ed448"),
        (pem(x25519.X25519PrivateKey.generate()), "a private key of the kind X25519"),
        (pem(dsa.generate_private_key(1024)), "a private key of the kind DSA"),
        (damaged_pem(), "a damaged RSA key"),
    ],
)
def test_a_file_without_a_usable_key_is_a_fault(folder, content, found):
    file = folder.file("s.pem", content)
    text = f"relay.toml:5: dkim[0].key: {file}: found {found}, expected {EXPECTED}"
    assert folder.faults(file) == [text]


@pytest.mark.parametrize("bits", [512, 1016, LARGE_BITS])
def test_an_rsa_key_that_receivers_do_not_verify_is_a_fault_at_once(folder, bits):
    file = folder.file("s.pem", rsa_pem(bits))
    began = time.thread_time()
    [fault] = folder.faults(file)
    assert f"found an RSA key of {bits} bits, expected {EXPECTED}" in fault
    assert time.thread_time() - began < 0.1


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666])
def test_a_file_that_others_can_read_is_a_fault(folder, mode):
    file = folder.file("s.pem", ED25519, mode=mode)
    expected = "expected one with which others cannot read it (chmod o-rwx)"
    text = f"relay.toml:5: dkim[0].key: {file}: found mode {mode:04o}, {expected}"
    assert folder.faults(file) == [text]


def test_the_permission_is_that_of_the_file_to_which_a_link_leads(folder):
    link = folder.path / "link.pem"
    link.symlink_to(folder.file("s.pem", ED25519, mode=0o644))
    assert "found mode 0644" in folder.faults(link)[0]


def test_what_is_no_file_with_a_key_is_a_fault_and_nothing_waits_for_it(folder):
    fifo, directory = folder.path / "fifo", folder.path / "directory"
    os.mkfifo(fifo, 0o600)
    directory.mkdir(0o700)
    large = folder.file("large.pem", b"#" * 70_000 + ED25519)
    faults = folder.faults(
        folder.path / "missing.pem",
        folder.path / ("x" * 300),
        fifo,
        directory,
        large,
        Path("/dev/null"),
    )
    assert [one.partition(": found ")[2] for one in faults] == [
        "no such file, expected a file with a private key",
        "one that cannot be read (file name too long), expected one that the service can read",
        "no regular file, expected a file with a private key",
        "one that cannot be read (is a directory), expected one that the service can read",
        "more than 65536 bytes, expected a file with a private key",
        "no regular file, expected a file with a private key",
    ]


def test_no_damage_of_an_rsa_key_ends_the_process_or_gives_a_key_that_does_not_hold():
    """The library's own check is left out, so its other ones and ours must be enough."""
    rng, good = random.Random(6376), 0
    der = base64.b64decode(b"".join(RSA_1024.splitlines()[1:-1]))
    for _ in range(500):
        damaged = bytearray(der)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(der))] = rng.choice((0, 1, 2, 255, rng.randrange(256)))
        text = base64.encodebytes(damaged)
        try:
            key = read_pem(b"-----BEGIN PRIVATE KEY-----\n" + text + b"-----END PRIVATE KEY-----\n")
        except ValueError:
            continue
        if key.kind == "rsa":
            public = load_der_public_key(key.public())
            public.verify(key.sign(b"x"), b"x", PKCS1v15(), SHA256())
            good += 1
    assert 15 < good < 485


async def test_a_key_signs_in_the_last_microsecond_of_its_last_day_and_not_in_the_next(folder):
    clock, file = ManualClock(), folder.file("s.pem", ED25519)
    ring = load_keys([DkimKey("a.test", "s1", file, "2027-06-30")])
    signer = Signer(lambda: ring, clock=clock, metrics=Metrics())
    content = ParsedContent.of(b"From: a@a.test\r\n\r\nx\r\n")
    midnight = datetime(2027, 7, 1, tzinfo=UTC)
    clock.now_us = round(midnight.timestamp()) * 1_000_000 - 1
    signed = await signer.sign([content], trusted=True)
    assert [key.selector for key in signed.keys] == ["s1"]
    assert b" t=1814399999;" in signed.contents[0].header.octets
    assert signer.sign_report(content).keys == signed.keys
    clock.now_us += 1
    signed = await signer.sign([content], trusted=True)
    assert (signed.keys, signed.unsigned) == ((), "the keys of a.test have ended")
    assert signed.contents == (content,)
    assert signer.sign_report(content).keys == ()
