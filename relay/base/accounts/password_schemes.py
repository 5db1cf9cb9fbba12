"""Read stored passwords and compare them: Argon2, hashes of crypt(3), and hashes after Dovecot's
{SCHEME}, as `doveadm pw` writes them.

The parameters in a hash determine how much time and memory its check takes; a hash that takes too
much is refused. crypt(3) is that of the system's libcrypt: its packages for Python need a compiler.
Argon2 is that of argon2-cffi: in `cryptography` 50, two checks at once of hashes with several lanes
deadlock, and a check that gets no thread can end the process.
Raises ValueError with what was expected; the text contains nothing of the secret.
"""

import binascii
import ctypes
import functools
import hashlib
import hmac
import os
import re
from base64 import b64decode
from collections.abc import Callable

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from msgspec import Struct

_OWN_PLAIN = "plain:"
_ARGON2_MAX = (1024 * 1024, 64, 16)  # KiB, rounds, lanes
_ARGON2 = ("$argon2id$", "$argon2i$")
# hashes of crypt(3); those of yescrypt take from 1 MiB to 256 MiB, 16 MiB in Debian's /etc/shadow
_CRYPT = {
    "BLF-CRYPT": re.compile(r"\$2[aby]\$(?:0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}"),
    "SHA256-CRYPT": re.compile(r"\$5\$(?:rounds=[0-9]{4,6}\$)?[^$:\s]{0,16}\$[./A-Za-z0-9]{43}"),
    "SHA512-CRYPT": re.compile(r"\$6\$(?:rounds=[0-9]{4,6}\$)?[^$:\s]{0,16}\$[./A-Za-z0-9]{86}"),
    "MD5-CRYPT": re.compile(r"\$1\$[^$:\s]{0,8}\$[./A-Za-z0-9]{22}"),
    "YESCRYPT": re.compile(r"\$y\$j[7-9A-D][5T]\$[./A-Za-z0-9]{1,86}\$[./A-Za-z0-9]{43}"),
}
_WHOLE = {  # the expected form of a hash, by its beginning
    "$2": "$2b$COST$ of a cost up to 15 (two digits), and 53 characters",
    "$5$": "$5$SALT$ of up to 999999 rounds and 43 characters",
    "$6$": "$6$SALT$ of up to 999999 rounds and 86 characters",
    "$1$": "$1$SALT$ and 22 characters",
    "$y$": "$y$j9T$SALT$ of up to 256 MiB and 43 characters, as {YESCRYPT}",
}
_DIGESTS = {"SHA": "sha1", "SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
_SALTED = {"SSHA": "sha1", "SSHA256": "sha256", "SSHA512": "sha512"}
_PLAIN = ("PLAIN", "CLEAR", "CLEARTEXT")
_MODULAR = ("CRYPT", *_CRYPT, "ARGON2ID", "ARGON2I")  # the hash itself names its scheme
_PBKDF2 = re.compile(r"\$1\$[^$:\s]{1,64}\$([0-9]{1,7})\$[0-9A-Fa-f]{40}")
_NAMED = re.compile(r"\{([A-Za-z0-9-]{1,32})(?:\.(b64|base64|hex))?\}", re.ASCII | re.IGNORECASE)
# the part of a text that a fault may show: the whole text may be a password
_FOUND = re.compile(
    r"\{[A-Z0-9-]{1,32}(?:\.[A-Za-z0-9]{1,6})?\}"
    r"|\$(?:[0-9][a-z]?|g?y|md5|sha1|apr1|argon2i?d?|scrypt|pbkdf2-sha(?:256|512)|bcrypt-sha256)\$"
)
_SALT_BYTES_MAX = 64
_CRYPT_BYTES_MAX = 511  # of a password, for libxcrypt
_CRYPT_DATA_BYTES = 256 * 1024  # more than each C library has in its struct crypt_data
_EXPECTED = (
    "$argon2id$..., $2b$... of a cost up to 15, $5$... or $6$... of up to 999999 rounds, "
    "plain:... or a hash behind one of "
    + ", ".join(f"{{{scheme}}}" for scheme in (*_MODULAR, "PBKDF2", *_SALTED, *_DIGESTS, "PLAIN"))
)


class Password(Struct, frozen=True):
    """A stored password: a hash with its parameters, a digest with its salt, or plain text."""

    hashed: str = ""
    plain: bytes = b""  # the octets of a digest and its salt, or the password
    scheme: str = ""  # Dovecot's name

    def matches(self, password: str) -> bool:
        """Whether `password` is the password. May take a second of CPU.

        Raises VerificationError if it cannot be computed, for example for lack of memory.
        """
        octets = password.encode("utf-8", "surrogatepass")
        if self.hashed.startswith(_ARGON2):
            try:
                return argon2.PasswordHasher().verify(self.hashed, octets)
            except (VerifyMismatchError, InvalidHashError):
                return False
        if self.scheme in _CRYPT:
            return _crypt_matches(self.hashed, octets)
        if name := _DIGESTS.get(self.scheme) or _SALTED.get(self.scheme):
            salt = self.plain[hashlib.new(name).digest_size :]
            return hmac.compare_digest(self.plain, hashlib.new(name, octets + salt).digest() + salt)
        if self.scheme == "PBKDF2":
            with_salt, rounds, expected = self.hashed.split("$")[2:]
            digest = hashlib.pbkdf2_hmac("sha1", octets, with_salt.encode(), int(rounds))
            return hmac.compare_digest(digest, bytes.fromhex(expected))
        return hmac.compare_digest(self.plain, octets)

    def for_nobody(self) -> "Password":
        """Return a password that nothing matches; its check takes as long as this one's."""
        if not self.hashed:
            return Password(plain=os.urandom(len(self.plain)), scheme=self.scheme)
        return Password(f"{self.hashed[:-22]}{'A' * 22}", scheme=self.scheme)


def parse_password(text: str) -> Password:
    """Read a password in the form of accounts.toml. Raises ValueError."""
    if text.startswith(_OWN_PLAIN) and len(text) > len(_OWN_PLAIN):
        return Password(plain=text.removeprefix(_OWN_PLAIN).encode(), scheme="PLAIN")
    prefix = _NAMED.match(text)
    scheme = prefix[1].upper() if prefix else "CRYPT"
    encoding = (prefix[2] or "").lower() if prefix else ""
    rest = text[prefix.end() :] if prefix else text
    if scheme in _DIGESTS or scheme in _SALTED:
        return Password(plain=_digest(scheme, _decoded(rest, encoding or "b64")), scheme=scheme)
    octets = _decoded(rest, encoding) if encoding else rest.encode()
    if scheme in _PLAIN and octets:
        return Password(plain=octets, scheme="PLAIN")
    hashed = octets.decode("ascii", "replace")
    if scheme == "PBKDF2" and (match := _PBKDF2.fullmatch(hashed)) and int(match[1]):
        return Password(hashed, scheme=scheme)
    if scheme in _MODULAR:
        return _modular(hashed)
    raise ValueError(_EXPECTED)


def is_plain(text: str) -> bool:
    """Whether a stored password or token is in plain text."""
    prefix = _NAMED.match(text)
    return text.startswith(_OWN_PLAIN) or (prefix is not None and prefix[1].upper() in _PLAIN)


def shown_scheme(text: str) -> str:
    """Return the scheme that a faulty password names; no other part of it is shown."""
    match = _FOUND.match(text)
    return match[0] if match else "something else"


def _modular(hashed: str) -> Password:
    """Read a hash that begins with its parameters. Raises ValueError."""
    if hashed.startswith(_ARGON2):
        try:
            parameters = argon2.extract_parameters(hashed)
        except InvalidHashError:
            raise ValueError("a whole Argon2 hash") from None
        costs = (parameters.memory_cost, parameters.time_cost, parameters.parallelism)
        if any(cost > most for cost, most in zip(costs, _ARGON2_MAX, strict=True)):
            raise ValueError("an Argon2 hash of at most 1 GiB, 64 rounds and 16 lanes")
        return Password(hashed, scheme=f"ARGON2{parameters.type.name}")
    scheme = next((name for name, form in _CRYPT.items() if form.fullmatch(hashed)), "")
    if not scheme:
        raise ValueError(
            next(
                (
                    f"a whole hash: {form}"
                    for prefix, form in _WHOLE.items()
                    if hashed.startswith(prefix)
                ),
                _EXPECTED,
            )
        )
    try:
        _crypt()
    except (OSError, AttributeError):
        raise ValueError("another scheme: this system has no libcrypt") from None
    return Password(hashed, scheme=scheme)


def _digest(scheme: str, octets: bytes) -> bytes:
    """Return a digest with its salt if their length is right. Raises ValueError."""
    size = hashlib.new(_DIGESTS.get(scheme) or _SALTED[scheme]).digest_size
    salt_bytes = len(octets) - size
    if salt_bytes == 0 if scheme in _DIGESTS else 0 < salt_bytes <= _SALT_BYTES_MAX:
        return octets
    salt = "" if scheme in _DIGESTS else f" and a salt of at most {_SALT_BYTES_MAX}"
    raise ValueError(f"{{{scheme}}} with {size} bytes{salt}, as base64 or with .HEX")


def _decoded(text: str, encoding: str) -> bytes:
    """Return the octets after a {SCHEME}. Raises ValueError."""
    try:
        return bytes.fromhex(text) if encoding == "hex" else b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("hexadecimal digits" if encoding == "hex" else "base64") from None


@functools.cache
def _crypt() -> Callable[[bytes, bytes, ctypes.Array[ctypes.c_char]], bytes | None]:
    """Return crypt_r() of libxcrypt, or of the C library (musl). It is thread-safe.

    Raises OSError and AttributeError if the system has none.
    """
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        library = ctypes.CDLL(None)
    function = library.crypt_r
    function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    function.restype = ctypes.c_char_p
    return function


def _crypt_matches(hashed: str, octets: bytes) -> bool:
    """Raises VerificationError for a hash that this libcrypt does not know."""
    if b"\0" in octets or len(octets) > _CRYPT_BYTES_MAX:  # crypt_r() would read only a part
        return False
    stored = hashed.encode()
    digest = _crypt()(octets, stored, ctypes.create_string_buffer(_CRYPT_DATA_BYTES))
    if digest is None or digest.startswith(b"*"):
        raise VerificationError(f"the libcrypt of this system knows no {hashed[:3]}")
    return hmac.compare_digest(digest, stored)
