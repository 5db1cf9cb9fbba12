"""Log in and out: /login, /logout, and the answer to a request without a login.

`next` is the requested page, as a reference relative to the first page (RFC 3986 4.2). A reference
that could lead to another host or out of the relay's paths is ignored.
"""

import math
import re
from urllib.parse import unquote_to_bytes

from starlette.responses import Response

from relay.base.accounts.account import LoginDelayedError
from relay.front_door.api.request_parameters import require_method
from relay.front_door.http.errors import ApiError
from relay.front_door.http.http_request import HttpRequest, body_too_large
from relay.front_door.pages.logins import Logins, Visitor, new_secret, read_form
from relay.front_door.pages.site import PageRequest, PageSite

# The first segment has no colon, so it is no scheme. No segment is empty, so there is no authority.
_REFERENCE = re.compile(
    r"(?:[\w.~!$&'()*+,;=@%-]+(?:/[\w.~!$&'()*+,;=:@%-]+)*/?)?(?:\?[\w.~!$&'()*+,;=:@%/?-]*)?",
    re.ASCII,
)
_NEXT_LENGTH_MAX = 2000
BODY_BYTES_MAX = 16 * 1024
_WRONG = "The address or the password is wrong."
_NO_COOKIE = (
    "Please try again. The form was too old, or the browser keeps no cookies of this site: they "
    "need HTTPS, or an address such as localhost."
)


async def login(request: HttpRequest, visitor: Visitor | None, site: PageSite) -> Response:
    """GET and POST /login."""
    if (logins := site.access.logins) is None:
        return site.redirect(request)
    if request.method == "POST":
        return await _log_in(request, site, logins)
    require_method(request, "GET")
    destination = local_reference(dict(request.query).get("next", ""))
    if visitor is not None:
        return _redirect(destination)
    return _form(request, site, logins, destination=destination)


def logout(request: PageRequest) -> Response:
    """POST /logout."""
    require_method(request.http, "POST")
    response = request.redirect("login" if request.visitor.may_log_out else "")
    if (logins := request.site.access.logins) is not None:
        logins.log_out(request.http, response)
    return response


def login_needed(request: HttpRequest, site: PageSite) -> Response:
    """Return the answer to a request without a login: a redirect, for a script 401.

    HX-Refresh makes htmx reload the page, which leads to the login.
    """
    headers = request.headers
    if "hx-request" in headers or "text/event-stream" in headers.get("accept", ""):
        refused = ApiError(
            401,
            "InvalidAuthenticationToken",
            "You are not logged in, or not any more.",
            headers={"hx-refresh": "true"},
        )
        return site.error(request, None, refused)
    destination = ""
    if request.method == "GET":
        path, _, query = request.target.decode("latin-1").partition("?")
        destination = local_reference(path.lstrip("/") + (f"?{query}" if query else ""))
    return site.redirect(request, "login", next=destination or None)


def local_reference(text: str) -> str:
    """Return the reference if it is relative and leads to one of the pages, else ""."""
    if len(text) > _NEXT_LENGTH_MAX or not _REFERENCE.fullmatch(text):
        return ""
    segments = text.partition("?")[0].split("/")
    if any(unquote_to_bytes(segment) in (b".", b"..") for segment in segments):
        return ""
    return text


async def _log_in(request: HttpRequest, site: PageSite, logins: Logins) -> Response:
    _check_size(request)
    try:
        form = await read_form(request, logins.form_token(request))
    except ApiError as error:
        if error.status != 403:
            raise
        return _form(request, site, logins, status=403, message=_NO_COOKIE)
    destination, user = local_reference(form.text("next")), form.text("user")
    try:
        account = await logins.account_of(request, user, form.text("password"))
    except LoginDelayedError as error:
        seconds = max(1, math.ceil(error.retry_after_s))
        message = f"{error}. Try again in {seconds} second{'' if seconds == 1 else 's'}."
        response = _form(
            request, site, logins, destination=destination, status=429, message=message
        )
        response.headers["retry-after"] = str(seconds)
        return response
    if account is None:
        return _form(request, site, logins, destination=destination, status=403, message=_WRONG)
    response = _redirect(destination)
    logins.log_in(request, account, response)
    return response


def _check_size(request: HttpRequest) -> None:
    """Raise ApiError for a large body: clients without a login must not use up the memory."""
    if "transfer-encoding" in request.headers:
        raise ApiError(411, "LengthRequired", "The form needs a Content-Length.")
    if (request.declared_bytes or 0) > BODY_BYTES_MAX:
        raise body_too_large(BODY_BYTES_MAX)


def _form(
    request: HttpRequest,
    site: PageSite,
    logins: Logins,
    *,
    destination: str = "",
    status: int = 200,
    message: str = "",
) -> Response:
    """Return the login form.

    After a link on another site the browser sends no cookie. So the form also has a link to the
    page, with which a browser that is logged in sends its cookie.
    """
    is_from_elsewhere = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    token = logins.form_token(request) or new_secret()
    response = site.page(
        request,
        None,
        "login.html",
        status=status,
        message=message,
        destination=destination,
        destination_url=_location(destination),
        is_from_elsewhere=is_from_elsewhere,
        form_token=token,
    )
    logins.keep_form_token(request, response, token)
    return response


def _redirect(reference: str) -> Response:
    """Return 303 to a page, by a reference relative to /login."""
    headers = {"location": _location(reference), "cache-control": "no-store"}
    return Response(status_code=303, headers=headers)


def _location(reference: str) -> str:
    return f"./{reference}" if not reference or reference.startswith("?") else reference
