"""The form of a POST: urlencoded, bounded, and with the CSRF token of its visitor.

A browser can be made to send a form to any address; that it has the token shows that it comes from
a page of this relay (OWASP Cross-Site Request Forgery Prevention Cheat Sheet).
"""

from hmac import compare_digest
from urllib.parse import parse_qsl

from msgspec import Struct

from relay.http.errors import ApiError, unsupported_media_type
from relay.http.http_request import HttpRequest

_FORM = "application/x-www-form-urlencoded"
_FIELDS_MAX = 2000
_CSRF_FIELD = "csrf"
_CSRF_HEADER = "x-csrf-token"
STALE_FORM = (
    "This form is from an earlier login, or from another site. Nothing was changed. Go back, load "
    "the page again, and repeat it."
)


class PageForm(Struct, frozen=True):
    """The fields of a form. A field may occur several times, such as the boxes of a list."""

    fields: tuple[tuple[str, str], ...]

    def text(self, name: str) -> str:
        """Return the value of a field, "" if it is absent."""
        return next((value for given, value in self.fields if given == name), "")

    def every(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [value for given, value in self.fields if given == name]


async def read_form(request: HttpRequest, csrf: str) -> PageForm:
    """Read the form of a POST whose CSRF token is `csrf`, "" for a visitor without one.

    The token is in the field `csrf` or in X-CSRF-Token. Raises ApiError 403 for another one or
    none, 415 for another media type, 400, and what HttpRequest.body() raises.
    """
    body = await request.body()
    if body and request.media_type != _FORM:
        raise unsupported_media_type(request.media_type, _FORM)
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=_FIELDS_MAX,
            errors="strict",
        )
    except ValueError:
        message = f"The form is not percent-encoded UTF-8, or has more than {_FIELDS_MAX} fields."
        raise ApiError(400, "BadRequest", message) from None
    form = PageForm(tuple(fields))
    given = request.headers.get(_CSRF_HEADER) or form.text(_CSRF_FIELD)
    if not is_csrf_token(given, csrf):
        raise ApiError(403, "ErrorAccessDenied", STALE_FORM)
    return form


def is_csrf_token(given: str, expected: str) -> bool:
    """Return whether a CSRF token is the expected one, in constant time; "" is none."""
    return bool(expected) and compare_digest(
        given.encode("utf-8", "surrogatepass"), expected.encode()
    )
