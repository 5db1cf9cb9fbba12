"""The keys with which clients sign assertions: certificates in PEM, and JWK sets (RFC 7517).

The issuer of a certificate is not checked, as in Entra: being in the file makes it the client's.
The file may be a chain: a certificate that issued another certificate of the file is left out.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import Certificate, load_pem_x509_certificates
from joserfc.jwk import ECKey, RSAKey
from msgspec import Struct

from relay.base.accounts.account import ClientKey, key_name
from relay.base.files import open_to_others, read_key_file
from relay.base.phrases import shown

SOON_S = 14 * 86400  # before the end of a certificate, `relay check` warns
RSA_BITS = (2048, 8192)  # the least and the most
KEYS_MAX = 20  # in one file
_OF_RSA = frozenset(("RS256", "PS256"))
_OF_EC = frozenset(("ES256",))
_KEY = f"an RSA key of {RSA_BITS[0]} to {RSA_BITS[1]} bits, or one of the curve P-256"
_CERTIFICATES = "certificates as PEM"
_KEY_SET = "a JWK set (RFC 7517)"
_PRIVATE = "found a private key too, which Relay does not need and others may read"
_PRIVATE_PEM = b"PRIVATE KEY-----"


class FoundKeys(Struct, frozen=True):
    """The keys of one file, and what `relay check` warns of."""

    keys: tuple[ClientKey, ...]
    warnings: tuple[str, ...] = ()


class _KeySet(Struct, frozen=True):
    keys: list[dict[str, Any]]


def read_certificates(text: str, base: Path, *, now_s: float) -> FoundKeys:
    """Return the keys of a PEM text, or of the file that a path relative to `base` names.

    Raises ValueError: what was found and expected.
    """
    pem, warnings = _content(text, base, mark="-----BEGIN", expected=_CERTIFICATES)
    if _PRIVATE_PEM in pem:
        warnings.append(_PRIVATE)
    try:
        chain = load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError(f"found none that can be read, expected {_CERTIFICATES}") from None
    certificates = [certificate for certificate in chain if not _is_issuer(certificate, chain)]
    _check_number(len(certificates), _CERTIFICATES)
    keys = []
    for number, certificate in enumerate(certificates, 1):
        try:
            key = _of_certificate(certificate)
        except ValueError as error:
            raise ValueError(f"certificate {number}: found {error}, expected {_KEY}") from None
        keys.append(key)
        warnings += _warnings_of_end(key, number, now_s)
    return FoundKeys(tuple(keys), tuple(warnings))


def read_key_set(text: str, base: Path) -> FoundKeys:
    """Return the keys of a JWK set, or of the file that a path relative to `base` names.

    Keys for encryption are left out. Raises ValueError: what was found and expected.
    """
    octets, warnings = _content(text, base, mark="{", expected=_KEY_SET)
    try:
        jwks = msgspec.json.decode(octets, type=_KeySet).keys
    except (ValueError, RecursionError) as error:
        raise ValueError(f"found something else ({error}), expected {_KEY_SET}") from None
    jwks = [jwk for jwk in jwks if jwk.get("use") != "enc"]
    _check_number(len(jwks), "keys for signatures")
    keys = []
    for number, jwk in enumerate(jwks):
        try:
            keys.append(_of_jwk(jwk))
        except ValueError as error:
            raise ValueError(f"keys[{number}]: found {error}, expected {_KEY}") from None
        if "d" in jwk:
            warnings.append(f"keys[{number}]: {_PRIVATE}")
    return FoundKeys(tuple(keys), tuple(warnings))


def _content(text: str, base: Path, *, mark: str, expected: str) -> tuple[bytes, list[str]]:
    """Return the content and warnings about its file.

    The content is `text` if `mark` occurs in it, else that of the file that `text` names.
    """
    if mark in text:
        return text.encode(), []
    file = base / text
    try:
        octets = read_key_file(file, expected=expected, is_secret=False)
    except ValueError as error:
        raise ValueError(f"{file if text.isprintable() else shown(text)}: {error}") from None
    too_wide = open_to_others(file)
    return octets, [too_wide] if too_wide else []


def _check_number(number: int, expected: str) -> None:
    if not 1 <= number <= KEYS_MAX:
        raise ValueError(f"found {number}, expected 1 to {KEYS_MAX} {expected}")


def _is_issuer(certificate: Certificate, others: Sequence[Certificate]) -> bool:
    """Return whether `certificate` issued one of the others.

    A renewal of `certificate` has the same issuer, but also the same subject: it does not count.
    """
    return any(
        other.issuer == certificate.subject and other.subject != certificate.subject
        for other in others
        if other is not certificate
    )


def _of_certificate(certificate: Certificate) -> ClientKey:
    try:
        public = certificate.public_key()
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (UnsupportedAlgorithm, ValueError):
        raise ValueError("a key of another kind") from None
    der = certificate.public_bytes(Encoding.DER)
    digests = [hashlib.sha1(der, usedforsecurity=False).digest(), hashlib.sha256(der).digest()]
    return _checked(
        public,
        # some libraries send the thumbprint in hexadecimal digits as key id
        [
            name
            for digest in digests
            for name in (urlsafe_b64encode(digest).decode(), digest.hex(), digest.hex().upper())
        ],
        begins_s=begins.timestamp(),
        ends_s=ends.timestamp(),
    )


def _of_jwk(jwk: dict[str, Any]) -> ClientKey:
    kind, curve, algorithm = (jwk.get(name) for name in ("kty", "crv", "alg"))
    if kind not in ("RSA", "EC"):
        raise ValueError(f"kty {kind!a:.40}")
    if kind == "EC" and curve != "P-256":
        raise ValueError(f"crv {curve!a:.40}")
    try:
        public = _public_key(jwk)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"a damaged key of the kind {kind}") from None
    key_ids = [jwk[name] for name in ("kid", "x5t", "x5t#S256") if isinstance(jwk.get(name), str)]
    key = _checked(public, key_ids)
    if algorithm is None:
        return key
    if algorithm not in tuple(key.algorithms):
        raise ValueError(f"alg {algorithm!a:.40}")
    return msgspec.structs.replace(key, algorithms=frozenset((algorithm,)))


def _public_key(jwk: dict[str, Any]) -> RSAPublicKey | EllipticCurvePublicKey:
    """Return the key of a JWK (RFC 7518 6). Raises ValueError, TypeError, KeyError."""
    if jwk["kty"] == "RSA":
        return RSAPublicNumbers(_number(jwk["e"]), _number(jwk["n"])).public_key()
    x, y = _number(jwk["x"]), _number(jwk["y"])
    return EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()


def _number(text: str) -> int:
    return int.from_bytes(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def _checked(public: object, names: Sequence[str], **validity: float) -> ClientKey:
    """Return a public key that is long enough. Raises ValueError with what was found."""
    kind: type[RSAKey | ECKey]
    if isinstance(public, RSAPublicKey):
        if not RSA_BITS[0] <= public.key_size <= RSA_BITS[1]:
            raise ValueError(f"an RSA key of {public.key_size} bits")
        kind, algorithms = RSAKey, _OF_RSA
    elif isinstance(public, EllipticCurvePublicKey):
        if not isinstance(public.curve, SECP256R1):
            raise ValueError(f"a key of the curve {public.curve.name}")
        kind, algorithms = ECKey, _OF_EC
    else:
        raise ValueError("a key of another kind")
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key, digest = kind.import_key(der), hashlib.sha256(der).digest()
    known = frozenset(map(key_name, (*names, key.thumbprint())))
    return ClientKey(key, known, algorithms, digest, **validity)


def _warnings_of_end(key: ClientKey, number: int, now_s: float) -> Iterator[str]:
    ends = datetime.fromtimestamp(key.ends_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if key.ends_s <= now_s:
        yield f"certificate {number}: it expired on {ends}; sign-in with it is refused"
    elif key.ends_s <= now_s + SOON_S:
        yield f"certificate {number}: it expires on {ends}; the file may have the next one too"
    elif key.begins_s > now_s:
        begins = datetime.fromtimestamp(key.begins_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        yield f"certificate {number}: it is valid from {begins} on"
