"""Prefer: outlook.body-content-type and outlook.allow-unsafe-html, for messages that are read.

The stored body does not change. Relay never removes anything from HTML, so that the second
preference always holds.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from relay.graph.graph_request import GraphRequest
from relay.mime.html_text import html_to_text, text_to_html

_TYPE = "outlook.body-content-type"
_UNSAFE = "outlook.allow-unsafe-html"
_CONVERT = {"text": html_to_text, "html": text_to_html}


async def show_preferred_bodies(request: GraphRequest, shown: Iterable[dict[str, Any]]) -> None:
    """Convert the bodies in the JSON of messages to the preferred type.

    A large page takes many seconds. Requests take turns with each message, so that none waits for
    the whole page of another one.
    """
    wanted = preferred_body_type(request)
    for one in shown:
        if wanted and _type_of(one) not in ("", wanted):
            async with request.dependencies.conversions:
                await asyncio.to_thread(convert_bodies, (one,), wanted)


def preferred_body_type(request: GraphRequest) -> str:
    """Return the preferred type, or "". The preferences count as applied."""
    preferred = request.preferences
    wanted = preferred.get(_TYPE, "").lower()
    if wanted in _CONVERT:
        request.applied.append(f'{_TYPE}="{wanted}"')
    if _UNSAFE in preferred:
        request.applied.append(_UNSAFE)
    return wanted if wanted in _CONVERT else ""


def _type_of(shown: Mapping[str, Any]) -> str:
    return str(shown["body"]["contentType"]) if "body" in shown else ""


def convert_bodies(messages: Iterable[dict[str, Any]], wanted: str) -> None:
    """Convert the bodies that have another type. Takes long for large ones."""
    for one in messages:
        if _type_of(one) in ("", wanted):
            continue
        content = _CONVERT[wanted](one["body"]["content"])
        one["body"] = {"contentType": wanted, "content": content}
