"""Handlers of outlook/masterCategories: the categories that a user has given a colour.

The list is part of the mailbox's settings. A message may have categories that are not in it, so
nothing happens to messages when it changes. A name is never changed, as in Graph, and unique
without regard to case.
"""

from collections.abc import Collection, Mapping
from typing import Any

from msgspec.structs import replace
from starlette.responses import Response

from relay.graph.graph_request import GraphRequest, collection_response
from relay.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
)
from relay.graph.message_parser import read_category
from relay.graph.query_options import parse_options
from relay.http.errors import ApiError, quoted
from relay.http.gateway import json_response
from relay.mailbox.settings_file import MasterCategory, UserSettings

CATEGORIES_MAX = 200
_COLORS = ("none", *(f"preset{number}" for number in range(25)))
_PROPERTIES = ("id", "displayName", "color")


async def list_categories(request: GraphRequest) -> Response:
    """GET outlook/masterCategories: all of them."""
    options = parse_options(
        request.http.query, allowed=("select", "top"), known=_PROPERTIES, page_size=CATEGORIES_MAX
    )
    found = (await request.store.settings.read(request.mailbox)).categories[: options.top]
    shown = [_json(one, options.select) for one in found]
    return collection_response(request.context(_context(request)), shown)


async def create_category(request: GraphRequest) -> Response:
    """POST outlook/masterCategories: add a category with a name that no other has."""
    given = await _read(request)
    name = read_category(given.get("displayName"), "displayName")
    if not name:
        raise missing_property("displayName")
    color = _color(given)
    async with request.patch_lock:
        settings = await request.store.settings.read(request.mailbox)
        if any(one.name.casefold() == name.casefold() for one in settings.categories):
            message = f"displayName: there is a category {quoted(name)}."
            raise ApiError(409, "CategoryNameDuplicate", message)
        if len(settings.categories) >= CATEGORIES_MAX:
            message = f"The mailbox has the maximum of {CATEGORIES_MAX} categories; delete one."
            raise ApiError(400, "ErrorInvalidRequest", message)
        made = MasterCategory(request.dependencies.ids.new(), name, color)
        await _write(request, settings, (*settings.categories, made))
    return _response(request, made, is_new=True)


async def get_category(request: GraphRequest) -> Response:
    """GET one category."""
    options = request.options({"select"}, _PROPERTIES)
    found = _find(request, await request.store.settings.read(request.mailbox))
    context = request.context(f"{_context(request)}/$entity")
    return json_response({**context, **_json(found, options.select)})


async def change_category(request: GraphRequest) -> Response:
    """PATCH a category: its colour."""
    given = await _read(request)
    async with request.patch_lock:
        settings = await request.store.settings.read(request.mailbox)
        found = _find(request, settings)
        if given.get("displayName") not in (None, found.name):
            expected = "the same name: delete the category and create another one"
            raise invalid_value("displayName", given["displayName"], expected)
        changed = replace(found, color=_color(given) if "color" in given else found.color)
        if changed != found:
            kept = (changed if one is found else one for one in settings.categories)
            await _write(request, settings, tuple(kept))
    return _response(request, changed, is_new=False)


async def delete_category(request: GraphRequest) -> Response:
    """DELETE a category from the list; messages keep it."""
    async with request.patch_lock:
        settings = await request.store.settings.read(request.mailbox)
        found = _find(request, settings)
        await _write(request, settings, tuple(one for one in settings.categories if one != found))
    return Response(status_code=204)


async def _read(request: GraphRequest) -> Mapping[str, Any]:
    return await request.json_object("outlookCategory")


def _color(given: Mapping[str, Any]) -> str:
    value = given.get("color")
    return "none" if value is None else one_of(value, "color", _COLORS)


def _find(request: GraphRequest, settings: UserSettings) -> MasterCategory:
    wanted = request.path_parameters["category"]
    for one in settings.categories:
        if one.id == wanted:
            return one
    raise ApiError(404, "ErrorItemNotFound", f"There is no category {quoted(wanted)}.")


def _json(category: MasterCategory, select: Collection[str] = ()) -> dict[str, Any]:
    shown = {"id": category.id, "displayName": category.name, "color": category.color}
    return {name: shown[name] for name in ("id", *select)} if select else shown


def _response(request: GraphRequest, category: MasterCategory, *, is_new: bool) -> Response:
    path = f"outlook/masterCategories/{category.id}"
    return request.changed(path, f"{_context(request)}/$entity", _json(category), is_new=is_new)


def _context(request: GraphRequest) -> str:
    return f"{request.owner}/outlook/masterCategories"


async def _write(
    request: GraphRequest, settings: UserSettings, categories: tuple[MasterCategory, ...]
) -> None:
    changed = replace(settings, categories=categories)
    await request.store.settings.write(request.mailbox, changed)
