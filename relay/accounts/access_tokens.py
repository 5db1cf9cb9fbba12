"""Access tokens of the token endpoint: JWTs (RFC 7519) that are signed with ES256 (RFC 7518 3.4).

A token names its client. Account, scopes and acts_for are looked up at each request, so that a
reload applies to tokens already issued. A token ends an hour after its issue in queue time, which
does not jump; `exp` has the same end in wall time, for programs that read the token. It ends as
well when its client is removed or gets another secret. The issuer may have any host name: the
signature alone proves that this relay issued a token.
"""

import hashlib
import hmac
import stat
from collections import OrderedDict
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from msgspec import Struct

from relay.accounts.account import Account, AccountDirectory, RegisteredClient
from relay.accounts.passwords import digest_of
from relay.clock import Clock
from relay.files import replace_file
from relay.settings.document import Fault, SettingsError

LIFETIME_S = 3600
TOKEN_KEY_FILE = "token-key.json"  # noqa: S105 - the name of a file in state_dir
TOKEN_LENGTH_MAX = 16 * 1024
_ALGORITHM = "ES256"
_CURVE = "P-256"
_REMEMBERED_MAX = 1024  # tokens whose signature was verified; that takes a fifth of a millisecond
_ENDS = "relay_exp"  # seconds of queue time
_SECRET = "relay_secret"  # noqa: S105 - a claim: a keyed digest of the client's secret


class InvalidTokenError(Exception):
    """A token of this relay is not valid any more; the text says why."""


class _VerifiedToken(Struct, frozen=True):
    """What a token says that has a valid signature."""

    client_id: str
    secret: str
    ends_s: int


def token_key(state_dir: Path) -> ECKey:
    """Return the key in `state_dir`; create it if there is none.

    Raises SettingsError as read_token_key(), OSError.
    """
    path = state_dir / TOKEN_KEY_FILE
    if not path.exists():
        _create_key(path)
    return read_token_key(path)


def read_token_key(path: Path) -> ECKey:
    """Read the key. Raises SettingsError if it is none or others can read it, OSError."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"found mode {mode:04o}, expected a key of its owner alone (chmod 600)"
        raise SettingsError([Fault(path, 0, "", message)])
    try:
        key = ECKey.import_key(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
        if not key.is_private or key.curve_name != _CURVE:
            raise ValueError  # noqa: TRY301 - one fault for all that is not such a key
    except (JoseError, ValueError, TypeError, KeyError):  # msgspec's errors are ValueErrors
        message = f"found something else, expected a private JWK for {_ALGORITHM}; without the "
        message += "file, a start creates one, and tokens issued before end"
        raise SettingsError([Fault(path, 0, "", message)]) from None
    return key


def _create_key(path: Path) -> None:
    """Write a new key."""
    made = ECKey.generate_key(_CURVE, {"use": "sig", "alg": _ALGORITHM})
    made.ensure_kid()
    replace_file(path, msgspec.json.encode(made.as_dict(private=True)), mode=0o600)


class AccessTokens:
    """Issues and checks access tokens."""

    def __init__(self, key: ECKey, clock: Clock) -> None:
        key.ensure_kid()
        self._key = key
        self._clock = clock
        private = key.as_dict(private=True)["d"]
        self._digest_key = hashlib.sha256(f"client secrets {private}".encode()).digest()
        self._verified: OrderedDict[bytes, _VerifiedToken] = OrderedDict()

    def issue(
        self, client: RegisteredClient, *, issuer: str, tenant: str, audience: str, token_id: str
    ) -> str:
        """Return a token for the client, with the claims of Entra's tokens for applications."""
        now_s = self._clock.time_us() // 1_000_000
        object_id = str(UUID(bytes=digest_of(client.client_id.lower())[:16], version=5))
        claims = {
            "aud": audience,
            "iss": issuer,
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + LIFETIME_S,
            "appid": client.client_id,
            "azp": client.client_id,
            "appidacr": "1",  # authenticated by a secret
            "idtyp": "app",
            "oid": object_id,
            "sub": object_id,
            "roles": sorted(client.account.scopes),
            "tid": tenant,
            "uti": token_id,
            "ver": "1.0",
            _ENDS: self._queue_s() + LIFETIME_S,
            _SECRET: self._digest_of_secret(client),
        }
        header = {"alg": _ALGORITHM, "kid": self._key.kid, "typ": "JWT"}
        return jwt.encode(header, claims, self._key)

    def client_of(self, token: str, accounts: AccountDirectory) -> RegisteredClient | None:
        """Return the client of a token, None for a token that this relay did not sign.

        Raises InvalidTokenError.
        """
        verified = self._verify(token)
        if verified is None:
            return None
        if self._queue_s() >= verified.ends_s:
            raise InvalidTokenError("Access token has expired.")
        client = accounts.by_client_id(verified.client_id)
        if client is None or not hmac.compare_digest(
            self._digest_of_secret(client), verified.secret
        ):
            raise InvalidTokenError("The client of the access token, or its secret, was removed.")
        return client

    def account_of(self, token: str, accounts: AccountDirectory, *, client: str) -> Account | None:
        """Return the account of any bearer token, None for an unknown one.

        Raises InvalidTokenError as client_of(), and LoginDelayedError for a `client` that guesses.
        """
        # first: a development relay has an account for any token, also for one that expired
        found = self.client_of(token, accounts)
        return found.account if found is not None else accounts.by_token(token, client=client)

    def public_keys(self) -> dict[str, Any]:
        """Return the JWK set (RFC 7517 5) with which others verify the tokens."""
        return {"keys": [self._key.as_dict(private=False)]}

    def _verify(self, token: str) -> _VerifiedToken | None:
        if len(token) > TOKEN_LENGTH_MAX or token.count(".") != 2:
            return None
        digest = digest_of(token)
        if (known := self._verified.get(digest)) is not None:
            return known
        try:
            claims = jwt.decode(token, self._key, algorithms=[_ALGORITHM]).claims
        except (JoseError, ValueError, TypeError):  # TypeError: of a header such as ["alg"]
            return None
        found = _VerifiedToken(claims["appid"], claims[_SECRET], claims[_ENDS])
        self._verified[digest] = found
        if len(self._verified) > _REMEMBERED_MAX:
            self._verified.popitem(last=False)
        return found

    def _queue_s(self) -> int:
        return self._clock.queue_us() // 1_000_000

    def _digest_of_secret(self, client: RegisteredClient) -> str:
        """Return the claim that ties a token to a secret; readers of a token cannot guess it."""
        digest = hmac.new(self._digest_key, client.secret_digest, hashlib.sha256)
        return digest.hexdigest()[:32]
