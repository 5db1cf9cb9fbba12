"""The stored forms of passwords and tokens, and how something given is compared with them.

On the path: directory reads accounts.toml with it and asks it at each log-in.
Holds: comparison takes the same time whatever differs; a token is kept as its SHA-256 only.
Fails: ValueError, whose text is only what was expected, for a stored form that is none.
Standards: RFC 9106 (Argon2id), FIPS 180-4.
"""

import hashlib
import hmac
from dataclasses import dataclass

import argon2
from argon2.exceptions import InvalidHashError, VerifyMismatchError

_PLAIN = "plain:"
_DIGEST = "sha256:"
_ARGON2ID = "$argon2id$"
_DIGEST_BYTES = 32
_MEMORY_KIB_MAX = 1024 * 1024  # a stored hash says itself how much memory it takes
_ROUNDS_MAX = 64
_LANES_MAX = 16


@dataclass(frozen=True, slots=True)
class Password:
    """A stored password: an Argon2id hash, or (for trials) the plain text."""

    hashed: str = ""
    plain: bytes = b""

    def matches(self, given: str) -> bool:
        """Whether `given` is it. With Argon2id this takes a tenth of a second of processor time.

        Raises VerificationError where that cannot be computed: memory is short, for one.
        """
        if not self.hashed:
            return hmac.compare_digest(self.plain, given.encode("utf-8", "surrogatepass"))
        try:
            return argon2.PasswordHasher().verify(self.hashed, given.encode("utf-8", "replace"))
        except (VerifyMismatchError, InvalidHashError):
            return False


def parse_password(text: str) -> Password:
    """Read `$argon2id$...` or `plain:...`. Raises ValueError."""
    if text.startswith(_PLAIN) and len(text) > len(_PLAIN):
        return Password(plain=text.removeprefix(_PLAIN).encode())
    if text.startswith(_ARGON2ID):
        try:
            parameters = argon2.extract_parameters(text)
        except InvalidHashError:
            raise ValueError("$argon2id$... or plain:...") from None
        is_bounded = (
            parameters.memory_cost <= _MEMORY_KIB_MAX
            and parameters.time_cost <= _ROUNDS_MAX
            and parameters.parallelism <= _LANES_MAX
        )
        if is_bounded:
            return Password(hashed=text)
        raise ValueError("an Argon2id hash of at most 1 GiB, 64 rounds and 16 lanes")
    raise ValueError("$argon2id$... or plain:...")


def parse_token(text: str) -> bytes:
    """Return the SHA-256 of what `sha256:HEX` or `plain:...` stands for. Raises ValueError."""
    if text.startswith(_PLAIN) and len(text) > len(_PLAIN):
        return digest_of(text.removeprefix(_PLAIN))
    if text.startswith(_DIGEST):
        try:
            digest = bytes.fromhex(text.removeprefix(_DIGEST))
        except ValueError:
            digest = b""
        if len(digest) == _DIGEST_BYTES:
            return digest
        raise ValueError("sha256: and 64 hexadecimal digits")
    raise ValueError("sha256:HEX or plain:...")


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def is_plain(text: str) -> bool:
    """Whether a stored form shows its secret."""
    return text.startswith(_PLAIN)
