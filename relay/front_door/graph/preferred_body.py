"""Prefer: outlook.body-content-type: message bodies in the type that the client prefers.

The body is converted in the response; the stored body does not change. Relay removes nothing from
HTML, so outlook.allow-unsafe-html has no effect and always counts as applied.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from relay.formats.html_text import html_to_text, text_to_html
from relay.front_door.graph.graph_request import GraphRequest

_TYPE = "outlook.body-content-type"
_UNSAFE = "outlook.allow-unsafe-html"
_CONVERT = {"text": html_to_text, "html": text_to_html}


async def show_preferred_body(request: GraphRequest, resource: dict[str, Any]) -> None:
    """Convert the body in a message's JSON to the preferred type."""
    await show_body_as(request, resource, preferred_body_type(request))


async def show_body_as(request: GraphRequest, resource: dict[str, Any], body_type: str) -> None:
    """Convert the body in a message's JSON to a type; "" leaves it.

    A large page takes many seconds. Accounts take turns after each message, so that none waits for
    another account's whole page. Raises NoPlaceError.
    """
    if _others(resource, body_type):
        async with request.conversion_turn():
            await asyncio.to_thread(convert_body, resource, body_type)


def preferred_body_type(request: GraphRequest) -> str:
    """Return the preferred type, or "". The preferences count as applied."""
    preferred = request.preferences
    body_type = preferred.get(_TYPE, "").lower()
    if body_type in _CONVERT:
        request.applied.append(f'{_TYPE}="{body_type}"')
    if _UNSAFE in preferred:
        request.applied.append(_UNSAFE)
    return body_type if body_type in _CONVERT else ""


def convert_body(resource: dict[str, Any], body_type: str) -> None:
    """Convert the body if it has another type. Takes long for a large one."""
    for name in _others(resource, body_type):
        content = _CONVERT[body_type](resource[name]["content"])
        resource[name] = {"contentType": body_type, "content": content}


def _others(resource: Mapping[str, Any], body_type: str) -> list[str]:
    """Return the bodies that have another type."""
    bodies = [name for name in ("body", "uniqueBody") if body_type and name in resource]
    return [name for name in bodies if resource[name]["contentType"] != body_type]
