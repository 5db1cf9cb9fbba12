"""Check the assertions with which clients sign in: private_key_jwt (RFC 7523, OpenID Connect 9).

An assertion is a JWT of the client, signed with one of its keys: it names the client as issuer and
subject and the token endpoint as audience, ends within ten minutes, and is valid once. The ids of
used assertions are remembered until they expire. An assertion is refused with Entra's error number.
Claims are checked before the signature, so that a program with a wrong clock or URL gets a useful
error.

A client without keys and an unknown client get the same text as for a wrong key.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Collection
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from relay.base.accounts.account import ClientKey, RegisteredClient, key_name
from relay.base.accounts.passwords import LoginFailedError
from relay.base.clock import Clock, rfc3339

ASSERTION_LENGTH_MAX = 12 * 1024  # with the chain of its certificate
ALGORITHMS = ("RS256", "PS256", "ES256")
LIFETIME_MAX_S = 600
SKEW_S = 30  # seconds by which a client's clock may be ahead
USED_MAX = 50_000  # ids of one kind that are remembered: 10 MB
_TYPES = ("jwt", "http://openid.net/specs/jwt/1.0")
# RFC 7515 7.1, but with the padding that azure-identity for asyncio sends
_COMPACT = re.compile(r"([A-Za-z0-9_-]+={0,2})\.([A-Za-z0-9_-]+={0,2})\.([A-Za-z0-9_-]*={0,2})")
_SHOWN = 128  # characters of an assertion's claims in an error
_Part = TypeVar("_Part")


class AssertionRefusedError(LoginFailedError):
    """An assertion is refused; `number` is Entra's error number."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class UsedFullError(Exception):
    """No further id can be remembered for `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("Too many sign-ins of this kind in a short time")
        self.retry_after_s = retry_after_s


class UsedIds:
    """Ids of single-use assertions that were used, with their expiration. They are kept
    until then.
    """

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def add(self, identifier: str, *, ends_s: float, now_s: float) -> bool:
        """Remember an id; return False if it was used. Raises UsedFullError."""
        if identifier in self._ends:
            return False
        if len(self._ends) >= USED_MAX:
            self._ends = {used_id: end_s for used_id, end_s in self._ends.items() if end_s > now_s}
        if len(self._ends) >= USED_MAX:
            raise UsedFullError(min(self._ends.values()) - now_s)
        self._ends[identifier] = ends_s
        return True


class _Header(Struct, frozen=True):
    alg: str
    typ: str | None = None
    kid: str | None = None
    x5t: str | None = None
    x5t_s256: str | None = field(default=None, name="x5t#S256")
    crit: Any = None

    def names(self) -> frozenset[str]:
        """Return the names that the header has for the key."""
        key_ids = (self.x5t_s256, self.x5t, self.kid)
        return frozenset(key_name(key_id) for key_id in key_ids if key_id)


class _Claims(Struct, frozen=True):
    iss: str
    sub: str
    aud: str | list[str]
    exp: float
    jti: str
    nbf: float | None = None

    @property
    def audience(self) -> str:
        """The audience; "" for several: another recipient could use the assertion here."""
        if isinstance(self.aud, str):
            return self.aud
        return self.aud[0] if len(self.aud) == 1 else ""


class _Assertion(Struct, frozen=True):
    header: _Header
    claims: _Claims
    signed: bytes
    signature: bytes


class AssertionChecker:
    """Checks assertions, and remembers which were used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used = UsedIds()

    def check(
        self,
        text: str,
        client: RegisteredClient | None,
        *,
        client_id: str,
        audiences: Collection[str],
    ) -> RegisteredClient:
        """Return the client with the digest of the key that signed the assertion `text`.

        `client` is the one with this id, None for an unknown one; `audiences` are the URLs of the
        token endpoint. Raises AssertionRefusedError, UsedFullError.
        """
        now_s = self._clock.time_us() / 1_000_000
        assertion = _parse(text)
        claims = assertion.claims
        if not claims.iss.lower() == claims.sub.lower() == client_id.lower():
            actual = f"iss {claims.iss[:_SHOWN]!a}, sub {claims.sub[:_SHOWN]!a}"
            message = f"application identifier doesn't match 'client_id' parameter: found {actual}"
            raise AssertionRefusedError(700021, f"Client assertion {message}.")
        if _comparable(claims.audience) not in map(_comparable, audiences):
            actual = str(claims.aud)[:_SHOWN]
            message = f"found aud {actual!a}, expected {' or '.join(audiences)}"
            text = f"Client assertion audience claim does not match Realm issuer: {message}."
            raise AssertionRefusedError(700023, text)
        self._check_times(claims, now_s)
        key = self._key_of(assertion, client)
        if client is None or key is None:
            name = next(iter(sorted(assertion.header.names())), "")[:_SHOWN]
            message = "the key was not found, or the signature is not of this key"
            raise AssertionRefusedError(
                700027,
                "Client assertion failed signature validation. "
                f"[Reason - {message}. Identifier of the key used by client: {name!a}]",
            )
        if not key.begins_s <= now_s < key.ends_s:
            message = "The certificate used is expired, or not valid yet"
            text = f"Client assertion failed signature validation. [Reason - {message}.]"
            raise AssertionRefusedError(700027, text)
        digest = hashlib.sha256(f"{client.client_id.lower()} {claims.jti}".encode()).hexdigest()
        if not self._used.add(digest, ends_s=claims.exp, now_s=now_s):
            raise AssertionRefusedError(
                50027,
                f"JWT token is invalid: an assertion with the jti {claims.jti[:_SHOWN]!a} was used "
                "before. Each request needs a new one.",
            )
        return replace(client, secret_digest=key.digest)

    def _check_times(self, claims: _Claims, now_s: float) -> None:
        if claims.exp <= now_s:
            actual = f"exp is {now_s - claims.exp:.0f} s ago"
        elif claims.exp > now_s + LIFETIME_MAX_S + SKEW_S:
            actual = f"exp is {claims.exp - now_s:.0f} s ahead, expected at most {LIFETIME_MAX_S} s"
        elif claims.nbf is not None and claims.nbf > now_s + SKEW_S:
            actual = f"nbf is {claims.nbf - now_s:.0f} s ahead"
        else:
            return
        now = rfc3339(int(now_s * 1_000_000))
        raise AssertionRefusedError(
            700024,
            f"Client assertion is not within its valid time range: {actual}. Current time: {now}.",
        )

    def _key_of(self, assertion: _Assertion, client: RegisteredClient | None) -> ClientKey | None:
        """Return the key of the client that signed the assertion, or None."""
        from joserfc.jws import JWSRegistry  # noqa: PLC0415 - a large library

        algorithm, names = assertion.header.alg, assertion.header.names()
        for key in client.keys if client else ():
            if algorithm not in key.algorithms or names.isdisjoint(key.names):
                continue
            verify = JWSRegistry(algorithms=ALGORITHMS).get_alg(algorithm).verify
            if verify(assertion.signed, assertion.signature, key.public):
                return key
        return None


def _parse(text: str) -> _Assertion:
    """Return the header and claims of an assertion; the signature is not checked. Raises
    AssertionRefusedError.
    """
    if len(text) > ASSERTION_LENGTH_MAX:
        actual = f"{len(text)} characters, expected at most {ASSERTION_LENGTH_MAX}"
        raise _malformed(f"found {actual}")
    parts = _COMPACT.fullmatch(text)
    if parts is None:
        raise _malformed("expected three parts in base64url, with dots between them")
    header = _decoded(parts[1], "header", _Header)
    if header.alg not in ALGORITHMS:
        actual = f"{header.alg[:_SHOWN]!a} is not a supported signature algorithm"
        supported = f"Supported signing algorithms are: '{','.join(ALGORITHMS)}'"
        raise AssertionRefusedError(5002738, f"Invalid JWT token. {actual}. {supported}.")
    if header.typ is not None and header.typ.lower() not in _TYPES:
        message = "Invalid JWT header type specified. Allowed types: 'JWT',"
        raise AssertionRefusedError(5002727, f"{message}'{_TYPES[1]}'.")
    if header.crit is not None:
        raise _malformed("header: found crit, whose extensions are not known here")
    if not header.names():
        message = "No certificate SHA-1 thumbprint, certificate SHA-256 thumbprint, nor keyId"
        text = f"Invalid JWT token. {message} specified in token header."
        raise AssertionRefusedError(5002723, text)
    claims = _decoded(parts[2], "claims", _Claims)
    if not claims.jti:
        raise _malformed("claims: found an empty jti, expected a text")
    signed = f"{parts[1]}.{parts[2]}".encode()
    return _Assertion(header, claims, signed, _base64(parts[3], "signature"))


def _decoded(part: str, name: str, kind: type[_Part]) -> _Part:
    try:
        return msgspec.json.decode(_base64(part, name), type=kind)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{name}: {error}") from None


def _base64(part: str, name: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part.rstrip("=") + "==")
    except binascii.Error:
        raise _malformed(f"{name}: expected base64url") from None


def _malformed(text: str) -> AssertionRefusedError:
    return AssertionRefusedError(50027, f"JWT token is invalid or malformed: {text}.")


def _comparable(url: str) -> str:
    """Return a URL as it is compared: without regard to case and percent-encoding."""
    return unquote(url).rstrip("/").lower()
