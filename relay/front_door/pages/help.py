"""How programs send to this relay: commands for a shell, a button, and programs in many languages.

The first minute (commands and button) is shown in an empty list, and always at /help.
/help/programs has the programs of docs/snippets.md, with the ports of this development relay.
"""

import re
import secrets
import shlex
from functools import cache
from urllib.parse import quote

import msgspec
from msgspec import Struct
from starlette.responses import Response

from relay.base.settings.environment import shipped
from relay.front_door.api.dependencies import ClientSettings
from relay.front_door.http.errors import bad_request, service_unavailable
from relay.front_door.pages.site import PageRequest

_KEY_BYTES = 16
_KEY_CHARACTERS_MAX = 64
_SUBJECT, _TEXT = "Hello", "It works."
_SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
_PROGRAM = re.compile(r"^```\w+\n((?>(?!```).*\n)*+)```$", re.MULTILINE)
_NAME = re.compile(r"^\*\*([^*]+?)\.?\*\*", re.MULTILINE)
_PORT = re.compile(r"\b(?:1025|1587|1465|8025|8443)\b")


class FirstMinute(Struct, frozen=True):
    """The values of `_first.html`: commands for a shell, and where SMTP clients connect, if known.

    `key` lets one page send one message, however often its button is pressed; without a key there
    is no button.
    """

    curl_http: str
    curl_smtp: str = ""
    smtp_host: str = ""
    smtp_port: int = 0
    key: str = ""
    needs_token: bool = True


def first_minute(request: PageRequest) -> FirstMinute:
    """Return the ways to send a first message to this relay."""
    base = request.http.base_url("", "127.0.0.1:8025")
    development = request.site.dependencies.development
    if development is None:
        return FirstMinute(_curl_http(f"{base}/v1.0/me/sendMail", "$TOKEN", "bob@example.com"))
    clients = development.clients
    name = clients.sender.partition("@")[0]
    whose, token = ("me", name)
    if clients.needs_token:
        whose, token = f"users/{quote(clients.sender, safe='@')}", "$TOKEN"
    return FirstMinute(
        _curl_http(f"{base}/v1.0/{whose}/sendMail", token, clients.recipient),
        _curl_smtp(clients.smtp_host, clients.smtp_port, clients.sender, to=clients.recipient),
        smtp_host=clients.smtp_host,
        smtp_port=clients.smtp_port,
        key=secrets.token_urlsafe(_KEY_BYTES),
        needs_token=clients.needs_token,
    )


async def help_page(request: PageRequest) -> Response:
    """GET /help."""
    first, development = first_minute(request), request.site.dependencies.development
    return request.page("help.html", first=first, clients=development and development.clients)


async def send_example(request: PageRequest) -> Response:
    """POST /help/example?key=: send one message to this relay, as a client does."""
    request.principal.check_may_operate()
    key = dict(request.http.query).get("key", "")
    if not (0 < len(key) <= _KEY_CHARACTERS_MAX and key.isascii() and key.isprintable()):
        raise bad_request(f"key: expected 1 to {_KEY_CHARACTERS_MAX} characters of ASCII.")
    reason = await request.controls.send_example(key)
    if reason:
        raise service_unavailable(f"The example was not sent: {reason}", retry_after_s=1)
    return request.redirect()


def _curl_http(url: str, token: str, recipient: str) -> str:
    message = {
        "subject": _SUBJECT,
        "body": {"contentType": "text", "content": _TEXT},
        "toRecipients": [{"emailAddress": {"address": recipient}}],
    }
    body = msgspec.json.encode({"message": message}).decode()
    return (
        f'curl -i {shlex.quote(url)} -H "Authorization: Bearer {token}" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def _curl_smtp(host: str, port: int, sender: str, *, to: str) -> str:
    content = f"From: {sender}\\nTo: {to}\\nSubject: {_SUBJECT}\\n\\n{_TEXT}\\n"
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return (
        f"printf '{content}' | curl -sS smtp://{place} --crlf --upload-file - "
        f"--mail-from {shlex.quote(sender)} --mail-rcpt {shlex.quote(to)}"
    )


# -- programs


class Snippet(Struct, frozen=True):
    """A program that sends a message to this relay; `title` has its language and library."""

    title: str
    code: str


async def snippets_page(request: PageRequest) -> Response:
    """GET /help/programs."""
    clients = request.controls.clients
    snippets = [with_ports(snippet, clients) for snippet in read_snippets()]
    return request.page("snippets.html", snippets=snippets)


@cache
def read_snippets() -> tuple[Snippet, ...]:
    """Return the programs of docs/snippets.md as they are printed there.

    A section is a language; a bold name in front of a program is its library.
    """
    snippets = []
    for language, text in _SECTION.findall(shipped("docs/snippets.md").read_text("utf-8")):
        end = 0
        for program in _PROGRAM.finditer(text):
            names = _NAME.findall(text, end, program.start())
            title = f"{language}: {names[-1]}" if names else language
            snippets.append(Snippet(title, program[1]))
            end = program.end()
    return tuple(snippets)


def with_ports(snippet: Snippet, clients: ClientSettings) -> Snippet:
    """Return the program with the ports of this relay; a port that the relay does not have is
    unchanged.
    """
    ports = {
        "1025": clients.smtp_port,
        "1587": clients.submission_port or 1587,
        "1465": clients.submissions_port or 1465,
        "8025": clients.http_port,
        "8443": clients.https_port or 8443,
    }
    return Snippet(snippet.title, _PORT.sub(lambda match: str(ports[match[0]]), snippet.code))
