"""Access tokens of the token endpoint: JWTs (RFC 7519) that are signed with ES256 (RFC 7518 3.4).

A token names its client. Account, scopes and acts_for are looked up at each request, so that a
reload applies to tokens already issued. A token expires an hour after its issue, in queue time,
which does not jump; `exp` has the same end in wall time, for programs that read the token. It also
ends when its client is removed, or the secret with which the client signed in. The issuer
may have any host name: the signature alone proves that this relay issued a token. A token may also
name a user. It is then valid for the user's account if the client may open that mailbox, with the
scopes of the account that were granted (`scp`).

The libraries for keys and signatures take 11 MB, which a relay without such tokens does not need:
the first use of the key imports them, in 60 ms.
"""

import hashlib
import hmac
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from msgspec import Struct

from relay.base.accounts.account import (
    Account,
    AccountDirectory,
    LoginDelayedError,
    RegisteredClient,
    Scope,
)
from relay.base.accounts.passwords import digest_of
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock, rfc3339
from relay.base.files import replace_file
from relay.base.message.address import lower_case
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.phrases import ahead_text
from relay.base.settings.document import Fault, SettingsError

if TYPE_CHECKING:
    from joserfc import jwt
    from joserfc.jwk import ECKey

LIFETIME_S = 3600
TOKEN_KEY_FILE = "token-key.json"  # noqa: S105 - the name of a file in state_dir
TOKEN_LENGTH_MAX = 16 * 1024
_ALGORITHM = "ES256"
_CURVE = "P-256"
_REMEMBERED_MAX = 1024  # verified tokens that are remembered: a verification takes 0.2 ms
_OF_USER = "user"
OIDC_SCOPES = ("openid", "profile", "email", "offline_access")
_ENDS = "relay_exp"  # seconds of queue time
_SCOPES = {scope.lower(): scope for scope in Scope}
_BEGIN = "eyJ"  # of each JWT: a JSON object in base64
_KEY_S = 60  # after which a client tries again while the key cannot be used
_SECRET = "relay_secret"  # noqa: S105 - a claim: a keyed digest of the client's secret
_log = get_logger("sign_in")


class InvalidTokenError(Exception):
    """A token of this relay is not valid any more; the text says why."""


class TokenKeyError(LoginDelayedError):
    """The key of access tokens cannot be used: they are neither issued nor checked."""


class _VerifiedToken(Struct, frozen=True):
    """The claims of a token with a valid signature."""

    client_id: str
    secret: str
    ends_s: int
    user: str  # an address, "" for the client itself
    scopes: frozenset[Scope]  # granted scopes, for a user


def token_key(state_dir: Path) -> "ECKey":
    """Return the key in `state_dir`; create it if there is none.

    Raises SettingsError as read_token_key(), OSError.
    """
    path = state_dir / TOKEN_KEY_FILE
    if not path.exists():
        _create_key(path)
    return read_token_key(path)


def read_token_key(path: Path) -> "ECKey":
    """Read the key. Raises SettingsError if it is no key, or others can read it, OSError."""
    from joserfc.errors import JoseError  # noqa: PLC0415 - see above
    from joserfc.jwk import ECKey  # noqa: PLC0415

    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) or mode & (stat.S_IROTH | stat.S_IWOTH):
        message = f"found {stat.filemode(mode)}, expected a file that others cannot read"
        message += " (chmod o-rwx)"
        raise SettingsError([Fault(path, 0, "", message)])
    try:
        key = ECKey.import_key(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
        if not key.is_private or key.curve_name != _CURVE:
            raise ValueError  # noqa: TRY301 - one fault for all that is not such a key
    except (JoseError, ValueError, TypeError, KeyError):
        message = f"found something else, expected a private JWK for {_ALGORITHM}; without the "
        message += "file, the first token creates it, and tokens issued before end"
        raise SettingsError([Fault(path, 0, "", message)]) from None
    return key


def _create_key(path: Path) -> None:
    """Write a new key."""
    from joserfc.jwk import ECKey  # noqa: PLC0415 - see above

    made = ECKey.generate_key(_CURVE, {"use": "sig", "alg": _ALGORITHM})
    made.ensure_kid()
    replace_file(path, msgspec.json.encode(made.as_dict(private=True)), mode=0o600)


def object_id(name: str) -> str:
    """Return the claim `oid` of a client or a user."""
    return str(UUID(bytes=digest_of(lower_case(name))[:16], version=5))


def _claims_of_client(client: RegisteredClient) -> dict[str, Any]:
    oid = object_id(client.client_id)
    return {"idtyp": "app", "oid": oid, "sub": oid, "roles": sorted(client.account.scopes)}


def granted_scopes(names: Iterable[str], user: Account) -> list[str]:
    """Return the claim `scp`: the names of the scopes that a user is granted. Scopes of Relay that
    the account has not are left out. User.Read is always granted: Entra gives it to each
    application.

    Without names of resources' scopes, or with .default, all scopes of the account are granted.
    """
    asked = [name for name in names if name != "offline_access"]
    if not {*asked} - {*OIDC_SCOPES} or ".default" in asked:
        asked = [*user.scopes, *(name for name in asked if name in OIDC_SCOPES)]
    granted = {_SCOPES.get(name.lower(), name) for name in (*asked, Scope.USER_READ)}
    return sorted(
        scope for scope in granted if (known := _scope_of(scope)) is None or known in user.scopes
    )


def _scope_of(name: str) -> Scope | None:
    """Return the scope of Relay that stands for a scope of Graph, such as Mail.Read for
    Mail.Read.Shared.
    """
    plain = name.lower().removesuffix(".all").removesuffix(".shared").replace("readbasic", "read")
    return _SCOPES.get(plain)


def _claims_of_user(user: Account, granted: Iterable[str]) -> dict[str, Any]:
    oid, address = object_id(user.address), user.address
    names = {"name": address.rpartition("@")[0], "upn": address, "unique_name": address}
    return {
        "idtyp": _OF_USER,
        "oid": oid,
        "sub": oid,
        "scp": " ".join(granted),
        **names,
    }


class AccessTokens:
    """Issues and checks access tokens."""

    def __init__(self, read_key: "Callable[[], ECKey]", clock: Clock) -> None:
        """`read_key` is called at the first use of the key, and again while it fails."""
        self._read_key, self._fault = read_key, RepeatedError()
        self._clock = clock
        self._verified = BoundedDict[bytes, _VerifiedToken](_REMEMBERED_MAX)

    @cached_property
    def _key(self) -> "ECKey":
        try:
            key = self._read_key()
        except (SettingsError, OSError) as error:
            self._fault.log(_log.error, "key of access tokens unusable", error)
            raise TokenKeyError("The key of access tokens cannot be used", _KEY_S) from error
        key.ensure_kid()
        return key

    @cached_property
    def _digest_key(self) -> bytes:
        private = self._key.as_dict(private=True)["d"]
        return hashlib.sha256(f"client secrets {private}".encode()).digest()

    def issue(
        self,
        client: RegisteredClient,
        *,
        issuer: str,
        tenant: str,
        audience: str,
        token_id: str,
        user: Account | None = None,
        granted: Iterable[str] = (),
    ) -> str:
        """Return a token for the client, with the claims of Entra's tokens for applications.

        With a `user` it has the claims of Entra's tokens for users; `granted` are the user's
        scopes.
        """
        now_s = self._clock.time_us() // 1_000_000
        claims = {
            "aud": audience,
            "iss": issuer,
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + LIFETIME_S,
            "appid": client.client_id,
            "azp": client.client_id,
            "app_displayname": client.account.display_name,
            "appidacr": "1",  # by a secret
            "tid": tenant,
            "uti": token_id,
            "ver": "1.0",
            **(_claims_of_client(client) if user is None else _claims_of_user(user, granted)),
            _ENDS: self._queue_s() + LIFETIME_S,
            _SECRET: self._keyed(client.secret_digest),
        }
        return self.sign(claims)

    def sign(self, claims: Mapping[str, Any], *, kind: str = "JWT") -> str:
        """Return a JWT; `kind` is its type (RFC 7519 5.1)."""
        from joserfc import jwt  # noqa: PLC0415 - see above

        header = {"alg": _ALGORITHM, "kid": self._key.kid, "typ": kind}
        return jwt.encode(header, dict(claims), self._key)

    def seal(
        self, client: RegisteredClient, claims: Mapping[str, Any], *, kind: str, lifetime_s: int
    ) -> str:
        """Return a signed text for unseal(), which is not an access token.

        It ends when the client or its secret is removed.
        """
        ends_s, secret = self._queue_s() + lifetime_s, self._keyed(client.secret_digest)
        own = {"appid": client.client_id, _SECRET: secret, _ENDS: ends_s}
        return self.sign({**claims, **own}, kind=kind)

    def unseal(self, client: RegisteredClient, text: str, *, kind: str) -> Mapping[str, Any] | None:
        """Return the claims of a sealed text; None if its kind, client or relay is another one.

        Raises InvalidTokenError for one that has ended.
        """
        token = self._decode(text)
        if token is None or token.header.get("typ") != kind:
            return None
        claims, own = token.claims, (client.client_id, self._keyed(client.secret_digest))
        if (claims["appid"], claims[_SECRET]) != own:
            return None
        if self._queue_s() >= claims[_ENDS]:
            raise InvalidTokenError("It has expired.")
        return claims

    def client_of(self, token: str, accounts: AccountDirectory) -> RegisteredClient | None:
        """Return the client of a token, None for a token that this relay did not sign.

        Raises InvalidTokenError, TokenKeyError.
        """
        verified = self._verify(token)
        if verified is None:
            return None
        if self._queue_s() >= verified.ends_s:
            ahead = ahead_text(rfc3339(self._clock.time_us()), self._clock.advanced_s)
            raise InvalidTokenError(f"Access token has expired{ahead}.")
        client = accounts.by_client_id(verified.client_id)
        digest = self._keyed(client.secret_digest) if client else ""
        if client is None or not hmac.compare_digest(digest, verified.secret):
            raise InvalidTokenError("The client of the access token, or its secret, was removed.")
        return client

    def account_of(self, token: str, accounts: AccountDirectory, *, client: str) -> Account | None:
        """Return the account of any bearer token, None for an unknown one.

        Raises InvalidTokenError as client_of(), and LoginDelayedError for a `client` after failed
        attempts.
        """
        # checked first: a development relay accepts any token, also one that has expired
        registered, verified = self.client_of(token, accounts), self._verify(token)
        if registered is None or verified is None:
            return accounts.by_token(token, client=client)
        if not verified.user:
            return replace(registered.account, is_application=True)
        if (user := accounts.opened(verified.user, registered.account)) is None:
            raise InvalidTokenError("The client may not open the mailbox of the token's user.")
        if user.scopes <= verified.scopes:
            return user
        return replace(user, scopes=user.scopes & verified.scopes)

    def public_keys(self) -> dict[str, Any]:
        """Return the JWK set (RFC 7517 5) with which others verify the tokens."""
        return {"keys": [self._key.as_dict(private=False)]}

    def _verify(self, token: str) -> _VerifiedToken | None:
        is_jwt = token.startswith(_BEGIN) and token.count(".") == 2
        if len(token) > TOKEN_LENGTH_MAX or not is_jwt:
            return None
        digest = digest_of(token)
        if (known := self._verified.get(digest)) is not None:
            return known
        decoded = self._decode(token)
        if decoded is None or _SECRET not in decoded.claims or decoded.header.get("typ") != "JWT":
            return None  # signed for another purpose
        claims = decoded.claims
        user = claims["upn"] if claims.get("idtyp") == _OF_USER else ""
        scopes = frozenset(filter(None, map(_scope_of, claims.get("scp", "").split())))
        verified = _VerifiedToken(claims["appid"], claims[_SECRET], claims[_ENDS], user, scopes)
        self._verified[digest] = verified
        return verified

    def _decode(self, token: str) -> "jwt.Token | None":
        from joserfc import errors, jwt  # noqa: PLC0415 - see above

        if len(token) > TOKEN_LENGTH_MAX:
            return None
        try:
            return jwt.decode(token, self._key, algorithms=[_ALGORITHM])
        except (errors.JoseError, ValueError, TypeError):  # TypeError: of a header such as ["alg"]
            return None

    def _queue_s(self) -> int:
        return self._clock.queue_us() // 1_000_000

    def _keyed(self, secret_digest: bytes) -> str:
        """Return the claim that ties a token to a secret. Readers of the token cannot derive the
        secret.
        """
        digest = hmac.new(self._digest_key, secret_digest, hashlib.sha256)
        return digest.hexdigest()[:32]
