"""POST /messages/{id}/release of a development relay: send a copy of captured mail.

It goes to the addresses that a person types. A page says first where it goes, and to whom. Mail is
released to its own recipients by /queue/release, where --release-allow matches them; typed, they
need a match as well.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from relay.api.dependencies import DevelopmentControls
from relay.api.release import (
    captured_recipients,
    check_own_recipients,
    parse_addresses,
    release_host,
)
from relay.api.request_parameters import require_method
from relay.http.errors import ApiError
from relay.message.lifecycle import RecipientState
from relay.pages.site import PageRequest
from relay.spool.queue_commands import CommandResult

_SEPARATOR = re.compile(r"[\s,;]+")


async def release(request: PageRequest, key: str) -> Response:
    """Show to whom a copy goes, and send it when that is confirmed."""
    site, form, principal = request.site, request.form, request.principal
    require_method(request.http, "POST")
    principal.check_may_operate()
    journey = await site.handlers.message(key, principal)
    entries = await site.handlers.captured_entries(journey)
    entry, development = entries[0], site.dependencies.development
    values: dict[str, Any] = {
        "journey": journey,
        "release_host": release_host(development),
        "copy_of": entry["id"],
        "own": captured_recipients(entry),
        "typed": form.text("to"),
    }
    try:
        addresses = parse_addresses([one for one in _SEPARATOR.split(form.text("to")) if one])
        check_own_recipients(entries, development, named=addresses)
    except ApiError as error:
        return request.page(
            "release.html", status=error.status, fault=error.message, addresses=(), **values
        )
    if not form.text("confirmed"):
        return request.page("release.html", fault="", addresses=addresses, **values)
    await site.handlers.release_copy(
        journey, addresses, principal, request=request.http, why=form.text("reason")
    )
    copies = len(addresses)
    return request.redirect(f"messages/{entry['id']}", did="release", copies=copies)


def released_by_command(
    answer: Mapping[str, Any] | None, development: DevelopmentControls | None
) -> dict[str, Any]:
    """Return for the page of a queue command: `release_host`, the recipients that are `leaving`,
    and `copy_of`, the one captured message that can be copied ("": none, or several).
    """
    host = development.release_to if development is not None else None
    listed = answer["entries"] if answer is not None else ()
    captured = [one for one in listed if one["state"] == RecipientState.CAPTURED]
    leaving = [
        address
        for entry in captured
        if development is not None and entry["result"] == CommandResult.DONE
        for address in captured_recipients(entry)
        if development.may_release(address)
    ]
    messages = {one["id"] for one in captured} if host is not None else set()
    copy_of = messages.pop() if len(messages) == 1 else ""
    return {"release_host": host, "leaving": leaving, "copy_of": copy_of}
