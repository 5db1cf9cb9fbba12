"""The programs of docs/snippets.md as a page, with the ports of this development relay."""

import re
from functools import cache

from msgspec import Struct
from starlette.responses import Response

from relay.api.dependencies import ClientSettings
from relay.api.request_parameters import require_method
from relay.http.errors import ApiError
from relay.pages.site import PageRequest
from relay.settings.environment import shipped

_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
_PROGRAM = re.compile(r"^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"^\*\*([^*]+?)\.?\*\*", re.MULTILINE)
_PORT = re.compile(r"\b(?:1025|1587|1465|8025|8443)\b")


class Snippet(Struct, frozen=True):
    """A program that sends a message to this relay; `title` has its language and library."""

    title: str
    code: str


async def snippets_page(request: PageRequest) -> Response:
    """GET /help/programs."""
    require_method(request.http, "GET")
    development = request.site.dependencies.development
    if development is None:
        raise ApiError(404, "ResourceNotFound", "Only the development relay has these programs.")
    snippets = [with_ports(one, development.clients) for one in read_snippets()]
    return request.page("snippets.html", snippets=snippets)


@cache
def read_snippets() -> tuple[Snippet, ...]:
    """Return the programs of docs/snippets.md as they are printed there.

    A section is a language; a bold name in front of a program is its library.
    """
    found = []
    for language, text in _SECTION.findall(shipped("docs/snippets.md").read_text("utf-8")):
        end = 0
        for program in _PROGRAM.finditer(text):
            names = _NAME.findall(text, end, program.start())
            title = f"{language}: {names[-1]}" if names else language
            found.append(Snippet(title, program[1]))
            end = program.end()
    return tuple(found)


def with_ports(snippet: Snippet, clients: ClientSettings) -> Snippet:
    """Return the program with the ports of this relay; those that it does not have stay."""
    ports = {
        "1025": clients.smtp_port, "1587": clients.submission_port or 1587,
        "1465": clients.submissions_port or 1465,
        "8025": clients.http_port, "8443": clients.https_port,
    }  # fmt: skip
    return Snippet(snippet.title, _PORT.sub(lambda found: str(ports[found[0]]), snippet.code))
