"""Pages for users who sign in to a development relay, and the way back to a program.

A code goes only to this machine: to loopback, to the scheme of an application (msal…://), or to the
blank page of native clients under the name by which the relay was asked. No page is ever shown in a
frame.
RFC 6749 4.1.2; RFC 8252 7; OAuth 2.0 Form Post Response Mode.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from urllib.parse import urlencode, urlsplit

from starlette.responses import HTMLResponse, Response

from relay.front_door.http.errors import quoted
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.sign_in.token_endpoint import NO_STORE, SignInError

NATIVE_CLIENT = "oauth2/nativeclient"
MODES = ("query", "fragment", "form_post")
_PATH = r"[A-Za-z0-9._~!$%&'()*+,;=:@/-]*"
_LOOPBACK = re.compile(
    r"https?://(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?"
    rf"(?:/{_PATH})?(?:\?[A-Za-z0-9._~!$%&'()*+,;=:@/?-]*)?",
    re.IGNORECASE,
)
_OF_APPLICATION = re.compile(rf"msal[A-Za-z0-9+.-]*://{_PATH}", re.IGNORECASE)
_SUBMIT = "document.forms[0].submit()"
_SUBMIT_DIGEST = base64.b64encode(hashlib.sha256(_SUBMIT.encode()).digest()).decode()
_OWN_SITES = ("none", "same-origin")  # the user opened the URL, or a page of the relay did


def require_own_redirect(redirect_uri: str, base_url: str) -> None:
    """Raise SignInError unless a URI leads to a program on this machine, or to this relay.

    `base_url` is that of the request: a URI below it comes back to this relay.
    """
    allowed = _LOOPBACK.fullmatch(redirect_uri) or _OF_APPLICATION.fullmatch(redirect_uri)
    if not allowed and redirect_uri != f"{base_url}/common/{NATIVE_CLIENT}":
        text = f"The redirect URI {quoted(redirect_uri)} specified in the request is not allowed: "
        text += f"expected loopback, msal…://, or …/common/{NATIVE_CLIENT} of the host that was "
        text += f"asked, {base_url}."
        raise SignInError("invalid_request", text, number=50011)


def is_of_another_site(request: HttpRequest) -> bool:
    """Whether a page of another site made the browser send a request (Fetch Metadata 2.2).

    A browser without these fields names the page in Referer; a program sends neither.
    """
    site = request.headers.get("sec-fetch-site", "").strip().lower()
    if site:
        return site not in _OWN_SITES
    referer = request.headers.get("referer", "")
    try:
        host = urlsplit(referer).netloc
    except ValueError:
        return True
    return bool(referer) and host.lower() != request.headers.get("host", "").lower()


def redirect_response(redirect_uri: str, mode: str, fields: Mapping[str, str]) -> Response:
    """Return the response that passes a code or an error to the program."""
    scheme = redirect_uri.partition(":")[0].lower()
    if mode == "form_post" and scheme in ("http", "https"):
        inputs = "".join(_hidden(name, value) for name, value in fields.items())
        body = f'<form method="post" action="{escape(redirect_uri)}">{inputs}'
        body += f"<button>Continue</button></form><script>{_SUBMIT}</script>"
        return _page("Signed in", body, form_action=f"{scheme}:")
    mark = "&" if "?" in redirect_uri else "?"
    if mode == "fragment":
        mark = "#"
    location = f"{redirect_uri}{mark}{urlencode(fields)}"
    return Response(status_code=302, headers={**_headers(), "location": location})


def blank_page() -> Response:
    """Return the page in whose URL a native client's browser control reads the code."""
    return HTMLResponse("", headers=_headers())


def approval_page(
    client_id: str, redirect_uri: str, *, user: str, needs_token: bool, fault: str = ""
) -> Response:
    """Return the page that asks before a program signs in. Its form is sent to the same URL."""
    names = f"<b>{escape(client_id)}</b> wants to sign in as <b>{escape(user)}</b>"
    body = f"<p>The program {names} and return to <code>{escape(redirect_uri)}</code>.</p>"
    body += _form(_token_field() if needs_token else "", "Approve", fault)
    scheme = f"{redirect_uri.partition(':')[0]}:"
    return _page("Sign in", body, form_action=f"'self' {scheme}", status=403 if fault else 200)


def device_page() -> Response:
    """Return the page whose address a device shows."""
    text = "<p>There is nothing to do: the program is signed in when it asks next.</p>"
    return _page("Sign in", text)


def _token_field() -> str:
    name = "Token of this relay"
    return f'<p><label>{name} <input name="token" type="password" required></label></p>'


def _form(fields: str, button: str, fault: str) -> str:
    alert = f'<p role="alert">{escape(fault)}</p>' if fault else ""
    submit = f'<button name="approve" value="yes">{button}</button>'
    return f'{alert}<form method="post">{fields}{submit}</form>'


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'


def _page(title: str, body: str, *, form_action: str = "'none'", status: int = 200) -> Response:
    text = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} - Relay</title>'
    text += f"<h1>{title}</h1>{body}</html>"
    headers = _headers(form_action)
    return HTMLResponse(text, status_code=status, headers=headers)


def _headers(form_action: str = "'none'") -> dict[str, str]:
    policy = f"default-src 'none'; script-src 'sha256-{_SUBMIT_DIGEST}'; base-uri 'none'; "
    return {
        **NO_STORE,
        "content-security-policy": f"{policy}form-action {form_action}; frame-ancestors 'none'",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
    }
