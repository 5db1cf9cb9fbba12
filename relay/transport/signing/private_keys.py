"""Private keys for DKIM: RSA (RFC 8301: 1,024 to 4,096 bits) and Ed25519 (RFC 8463).

Signing releases the interpreter lock, so that threads can sign in parallel.
"""

import hashlib
import re
from typing import Literal, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from msgspec import Struct

from relay.transport.signing.keys import RSA_BITS_ADVISED, PrivateKey

RSA_BITS = (1024, 4096)  # the least and the most; receivers need not verify others (RFC 8301 3.2)
EXPECTED = (
    f"an RSA key of {RSA_BITS[0]} to {RSA_BITS[1]} bits or an Ed25519 key, as PEM without a "
    "passphrase"
)
_PUBLIC_EXPONENT = 65537
_LABEL = re.compile(rb"-----(BEGIN [A-Z0-9 ]{1,40})-----")  # RFC 7468 2


class RsaKey(Struct, frozen=True):
    """An RSA key for rsa-sha256."""

    key: RSAPrivateKey
    algorithm: str = "rsa-sha256"
    kind: str = "rsa"

    @property
    def bits(self) -> int:
        """See PrivateKey."""
        return self.key.key_size

    def sign(self, octets: bytes) -> bytes:
        """See PrivateKey."""
        return self.key.sign(octets, PKCS1v15(), SHA256())

    def public(self) -> bytes:
        """See PrivateKey."""
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Ed25519Key(Struct, frozen=True):
    """An Ed25519 key for ed25519-sha256."""

    key: Ed25519PrivateKey
    algorithm: str = "ed25519-sha256"
    kind: str = "ed25519"
    bits: int = 256

    def sign(self, octets: bytes) -> bytes:
        """See PrivateKey. What is signed is the hash (RFC 8463 3)."""
        return self.key.sign(hashlib.sha256(octets).digest())

    def public(self) -> bytes:
        """See PrivateKey: the raw key, without ASN.1 (RFC 8463 4.2)."""
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def read_pem(pem: bytes) -> PrivateKey:
    """Return the private key of a PEM text. Raises ValueError with what was found.

    The library's check of an RSA key tests for primes. It takes 0.04 s with 2,048 bits and 4 s with
    8,192 bits, in which nothing else in the process runs. Instead, a signature is made and verified
    here: it shows that the private key belongs to the public key.
    """
    try:
        key = load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise ValueError("a private key with a passphrase") from None
    except UnsupportedAlgorithm:
        raise ValueError("a private key of another kind") from None
    except ValueError:
        raise ValueError(_found_in(pem)) from None
    if isinstance(key, Ed25519PrivateKey):
        return Ed25519Key(key)
    if not isinstance(key, RSAPrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey")  # such as EC
        raise ValueError(f"a private key of the kind {kind}")
    low, high = RSA_BITS
    if not low <= key.key_size <= high:
        raise ValueError(f"an RSA key of {key.key_size} bits")
    private = RsaKey(key)
    try:
        key.public_key().verify(private.sign(b""), b"", PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError):
        raise ValueError("a damaged RSA key") from None
    return private


def _found_in(pem: bytes) -> str:
    """Return what is in a text without a private key, such as a certificate."""
    label = _LABEL.search(pem)
    return f'"{label[1].decode()}" and no private key that can be read' if label else "no key"


def new_key(kind: Literal["rsa", "ed25519"], *, bits: int = RSA_BITS_ADVISED) -> PrivateKey:
    """Return a new key; `bits` are those of an RSA key."""
    if kind == "ed25519":
        return Ed25519Key(Ed25519PrivateKey.generate())
    return RsaKey(generate_private_key(_PUBLIC_EXPONENT, bits))


def write_pem(private: PrivateKey) -> bytes:
    """Return a key as PEM (PKCS #8), without a passphrase."""
    key = cast("RsaKey | Ed25519Key", private).key
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
