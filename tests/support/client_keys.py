"""Keys, certificates and assertions of clients of the token endpoint: good ones, and such as none makes.

See RFC 7523 and RFC 7515; certificates are self-signed, or of another key.
"""

import base64
import functools
import hashlib
import hmac
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

BEGINS_S, ENDS_S = 1_600_000_000, 4_000_000_000


@functools.cache
def private_key(kind: str = "rsa", number: int = 0) -> Any:
    """A private key: "rsa", "ec", or of a kind that Relay refuses. Another number is another key."""
    match kind:
        case "ec":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            bits = int(kind.removeprefix("rsa") or 2048)
            return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate and its private key."""

    private: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        """The private key."""
        return self.private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ).decode()

    @property
    def hexadecimal_thumbprint(self) -> str:
        """SHA-1, as users write it."""
        return self.certificate.fingerprint(hashes.SHA1()).hex().upper()

    def thumbprint(self, algorithm: hashes.HashAlgorithm | None = None) -> str:
        """SHA-1, as x5t has it, or another one."""
        return base64url(self.certificate.fingerprint(algorithm or hashes.SHA1()))


@functools.cache
def certificate(
    kind: str = "rsa",
    number: int = 0,
    *,
    begins_s: int = BEGINS_S,
    ends_s: int = ENDS_S,
    issuer: str = "",
    name: str = "client",
) -> ClientCertificate:
    """A certificate of private_key(); one of an `issuer` is signed by the key "ec"."""
    private = private_key(kind, number)
    builder = x509.CertificateBuilder(
        _name(issuer or name),
        _name(name),
        private.public_key(),
        x509.random_serial_number(),
        datetime.fromtimestamp(begins_s, UTC),
        datetime.fromtimestamp(ends_s, UTC),
    )
    by = private_key("ec") if issuer else private
    made = builder.sign(by, None if kind == "ed25519" else hashes.SHA256())
    return ClientCertificate(private, made)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def public_jwk(kind: str = "rsa", number: int = 0, **more: Any) -> dict[str, Any]:
    """The public key as a JWK."""
    return dict(_joserfc_key(private_key(kind, number)).as_dict(private=False)) | more


def private_jwk(kind: str = "rsa", **more: Any) -> dict[str, Any]:
    """The private key as a JWK."""
    return dict(_joserfc_key(private_key(kind)).as_dict(private=True)) | more


def claims_of(client_id: str, audience: str, now_s: float, **more: Any) -> dict[str, Any]:
    """The claims of a good assertion; None in `more` leaves one out."""
    digest = hashlib.sha256(repr((now_s, more)).encode()).hexdigest()
    claims = {
        "aud": audience,
        "iss": client_id,
        "sub": client_id,
        "exp": now_s + 600,
        "nbf": now_s,
        "iat": now_s,
        "jti": digest,
    } | more
    return {name: value for name, value in claims.items() if value is not None}


def signed(
    private: Any,
    claims: Mapping[str, Any],
    header: Mapping[str, Any],
    *,
    encode: Callable[[bytes], str] | None = None,
) -> str:
    """An assertion of any claims and any header. A MAC has the public key as its secret."""
    encode = encode or base64url
    text = ".".join(encode(json.dumps(dict(part)).encode()) for part in (header, claims))
    algorithm = JWSRegistry.algorithms.get(str(header.get("alg")))
    if algorithm is None or algorithm.name == "none":
        return f"{text}."
    key = _joserfc_key(private)
    if algorithm.name.startswith("HS"):
        mac = hmac.digest(key.as_pem(private=False), text.encode(), f"sha{algorithm.name[2:]}")
        return f"{text}.{encode(mac)}"
    return f"{text}.{encode(algorithm.sign(text.encode(), key))}"


@functools.cache  # it takes longer than a signature: the primes are checked
def _joserfc_key(private: Any) -> Any:
    kind = RSAKey if isinstance(private, rsa.RSAPrivateKey) else ECKey
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with warnings.catch_warnings(action="ignore"):  # of a short key
        return kind.import_key(pem)


def base64url(octets: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
