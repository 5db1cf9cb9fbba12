"""What a token server is asked for, and how its answers are read: nothing here does I/O.

RFC 6749 4.4 (client credentials), 5 (answers), 6 (refresh); RFC 7523 (assertions); RFC 8628 (device
code). Microsoft: learn.microsoft.com/entra/identity-platform/certificate-credentials; Google:
developers.google.com/identity/protocols/oauth2/service-account.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from relay.base.message.nexthop import HopKind
from relay.base.phrases import hiding, printable
from relay.base.settings.tree import OAuthClient
from relay.delivery.smtp.connect import TokenError

_MICROSOFT = "https://login.microsoftonline.com/{}/oauth2/v2.0/token"
_GOOGLE = "https://oauth2.googleapis.com/token"
_SCOPES = {  # of Microsoft: by use, and whether a person has signed in
    (HopKind.SMTP, False): "https://outlook.office365.com/.default",
    (HopKind.SMTP, True): "https://outlook.office.com/SMTP.Send offline_access",
    (HopKind.GRAPH, False): "https://graph.microsoft.com/.default",
    (HopKind.GRAPH, True): "https://graph.microsoft.com/.default offline_access",
}
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_ASSERTED = {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}
_ASSERTION_S = 600  # Microsoft advises 5 to 10 minutes
_LIFETIME_S_MIN, _LIFETIME_S_MAX = 1.0, 86400.0  # of a token that are believed
_LIFETIME_S = 60.0  # where the server says less
_TEXT_MAX = 600
_TOKEN = re.compile(r"[\x21-\x7e]+")  # RFC 6749 A.12; one word in a header, and in XOAUTH2
_OPEN_FIELDS = ("grant_type", "client_id", "scope", "client_assertion_type", "redirect_uri")
SIGN_IN = ("invalid_grant", "interaction_required", "consent_required", "login_required")
_AWAY = ("temporarily_unavailable", "server_error")


class _ServiceAccount(Struct, frozen=True):
    """The key file of a Google service account."""

    client_email: str
    private_key: str
    private_key_id: str = ""


class TokenAnswer(Struct, frozen=True):
    """An answer of a token server: a token, a device code, or an error; times in seconds."""

    access_token: str = ""  # RFC 6749 5.1
    expires_in: float = 300.0  # from its receipt; the server may leave it out
    refresh_token: str = ""  # a new one; "": the one that was used stays
    scope: str = ""  # what was granted
    device_code: str = ""  # RFC 8628 3.2
    user_code: str = ""  # that a person enters
    verification_uri: str = ""  # where
    interval: float = 5.0  # between questions whether they have
    error: str = ""  # RFC 6749 5.2
    error_description: str = ""  # of Microsoft with an AADSTS number
    trace_id: str = ""  # Microsoft's


def token_url(client: OAuthClient) -> str:
    """Return the URL of the token endpoint."""
    of_provider = _GOOGLE if client.provider == "google" else _MICROSOFT.format(client.tenant)
    return client.token_url or of_provider


def key_file(client: OAuthClient) -> Path | None:
    """Return the file with which an application proves who it is, if it does so by a file."""
    return client.certificate or client.service_account or client.assertion_file


def is_delegated(client: OAuthClient) -> bool:
    """Return whether tokens come by the refresh token of a person who has signed in."""
    return not key_file(client) and (not client.client_secret or client.provider == "google")


def scope_of(client: OAuthClient, use: HopKind) -> str:
    """Return what a token for SMTP or GRAPH is for."""
    if client.scope or client.provider == "google":
        return client.scope or "https://mail.google.com/"
    return _SCOPES[use, is_delegated(client)]


def grant_form(
    client: OAuthClient, use: HopKind, mailbox: str, *, secret: str, now_s: int, jti: str
) -> dict[str, str]:
    """Return the form that asks for a token. `secret` is the content of key_file(), or the refresh
    token; `jti` a new id. Raises ValueError for a content that is no key.
    """
    form = {"client_id": client.client_id, "scope": scope_of(client, use)}
    claims = {"aud": token_url(client), "iat": now_s, "exp": now_s + _ASSERTION_S, "jti": jti}
    if client.service_account is not None:
        try:
            account = msgspec.json.decode(secret, type=_ServiceAccount)
        except ValueError as error:
            expected = "the JSON of a service account"
            raise ValueError(f"found something else ({error}), expected {expected}") from None
        claims |= {"iss": account.client_email, "scope": form["scope"]}
        claims |= {"sub": mailbox} if mailbox else {}
        header = {"alg": "RS256", "kid": account.private_key_id}
        return {"grant_type": _JWT_BEARER, "assertion": _jwt(header, claims, account.private_key)}
    if client.client_secret:
        form["client_secret"] = client.client_secret
    if is_delegated(client):
        return form | {"grant_type": "refresh_token", "refresh_token": secret}
    form["grant_type"] = "client_credentials"
    if client.certificate is not None:
        claims |= dict.fromkeys(("iss", "sub"), client.client_id)
        form |= _ASSERTED | {"client_assertion": _jwt({"alg": "PS256"}, claims, secret)}
    elif secret:
        form |= _ASSERTED | {"client_assertion": secret}
    return form


def _jwt(header: dict[str, str], claims: dict[str, Any], pem: str) -> str:
    """Return a signed JWT, with the thumbprint of the certificate in `pem` if it has no `kid`."""
    from joserfc import jwt  # noqa: PLC0415 - it takes memory
    from joserfc.errors import JoseError  # noqa: PLC0415
    from joserfc.jwk import RSAKey  # noqa: PLC0415

    try:
        key = RSAKey.import_key(pem)
        if "kid" not in header:
            header["x5t#S256"] = _thumbprint(pem, key.public_key)
        return jwt.encode({"typ": "JWT", **header}, claims, key, algorithms=[header["alg"]])
    except (JoseError, ValueError, TypeError, KeyError):
        expected = "an RSA key in PEM without a passphrase, and its certificate if it has one"
        raise ValueError(f"found something else, expected {expected}") from None


def _thumbprint(pem: str, public_key: object) -> str:
    """Return the x5t#S256 of the certificate in `pem`. Raises ValueError if it has another key."""
    from cryptography import x509  # noqa: PLC0415 - they take memory
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    certificate = x509.load_pem_x509_certificate(pem.encode())
    if certificate.public_key() != public_key:
        raise ValueError("another key")
    return urlsafe_b64encode(certificate.fingerprint(SHA256())).rstrip(b"=").decode()


def hide_form(form: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that removes the secrets of a form from a text."""
    return hiding(*(text for name, text in form.items() if name not in _OPEN_FIELDS))


def read_answer(
    status: int, body: bytes, *, client: OAuthClient, form: Mapping[str, str]
) -> TokenAnswer:
    """Return the token, or the device code, that `form` has asked for. Raises TokenError, with the
    server's words and the next step; of the secrets of `form` the text has nothing.
    """
    try:
        answer = msgspec.json.decode(body, type=TokenAnswer, strict=False)
    except (ValueError, RecursionError):
        answer = TokenAnswer()
    if status == 200 and _TOKEN.fullmatch(answer.access_token or answer.device_code):
        is_life = answer.expires_in >= _LIFETIME_S_MIN
        lifetime_s = min(answer.expires_in, _LIFETIME_S_MAX) if is_life else _LIFETIME_S
        return msgspec.structs.replace(answer, expires_in=lifetime_s)
    host = urlsplit(token_url(client)).netloc
    if not answer.error:
        raise TokenError(f"{host}: the answer ({status}) is not one of a token server")
    words = f"{answer.error} {answer.error_description}"
    words += f" (trace_id {answer.trace_id})" if answer.trace_id not in words else ""
    text = f"{host}: {printable(hide_form(form)(words).strip()[:_TEXT_MAX])}"
    if status >= 500 or status == 429 or answer.error in _AWAY:
        raise TokenError(text)
    step = f'check [[oauth]] "{client.name}" and the registration of the application'
    code = answer.error if is_delegated(client) else "invalid_client"  # no sign-in helps
    if code in SIGN_IN:
        step = f"sign in: relay oauth login {client.name}"
    raise TokenError(f"{text}; {step}", error=code)
