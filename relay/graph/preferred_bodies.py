"""Prefer: outlook.body-content-type and outlook.allow-unsafe-html, for messages that are read.

The stored body does not change. Relay never removes anything from HTML, so that the second
preference always holds.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from relay.graph.graph_request import GraphRequest
from relay.mime.html_text import html_to_text, text_to_html

_TYPE = "outlook.body-content-type"
_UNSAFE = "outlook.allow-unsafe-html"
_CONVERT = {"text": html_to_text, "html": text_to_html}


async def show_preferred_body(request: GraphRequest, shown: dict[str, Any]) -> None:
    """Convert the body in a message's JSON to the preferred type."""
    await show_body_as(request, shown, preferred_body_type(request))


async def show_body_as(request: GraphRequest, shown: dict[str, Any], wanted: str) -> None:
    """Convert the body in a message's JSON to a type; "" leaves it.

    A large page takes many seconds. Requests take turns with each message, so that none waits for
    the whole page of another one.
    """
    if _others(shown, wanted):
        async with request.dependencies.conversions:
            await asyncio.to_thread(convert_body, shown, wanted)


def preferred_body_type(request: GraphRequest) -> str:
    """Return the preferred type, or "". The preferences count as applied."""
    preferred = request.preferences
    wanted = preferred.get(_TYPE, "").lower()
    if wanted in _CONVERT:
        request.applied.append(f'{_TYPE}="{wanted}"')
    if _UNSAFE in preferred:
        request.applied.append(_UNSAFE)
    return wanted if wanted in _CONVERT else ""


def convert_body(shown: dict[str, Any], wanted: str) -> None:
    """Convert the body if it has another type. Takes long for a large one."""
    for name in _others(shown, wanted):
        content = _CONVERT[wanted](shown[name]["content"])
        shown[name] = {"contentType": wanted, "content": content}


def _others(shown: Mapping[str, Any], wanted: str) -> list[str]:
    """Return the bodies that have another type."""
    bodies = [name for name in ("body", "uniqueBody") if wanted and name in shown]
    return [name for name in bodies if shown[name]["contentType"] != wanted]
