"""Handlers of the mailFolder resource: list, get, create, rename, move and delete.

A folder keeps its id when it is renamed or moved. A 201 is sent when the change is on disk.
Well-known folders cannot be moved or deleted (403); a name that exists already is a 409.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from relay.front_door.graph import errors, serializer
from relay.front_door.graph.entity_tags import etag_field
from relay.front_door.graph.extended_properties import (
    CHILD_FOLDERS,
    FOLDER_COMPUTED,
    MULTIPLE,
    SINGLE,
    parse_expand,
    shown_id,
)
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.json_values import (
    destination_id,
    missing_property,
    read_boolean,
    read_header_text,
    unsupported,
)
from relay.front_door.graph.odata.resources import select_folders
from relay.front_door.graph.responses import collection_response, fitting
from relay.front_door.http.errors import bad_request
from relay.front_door.http.responses import json_response
from relay.store.mailbox.stored_message import Folder

_NAME_CHARACTERS = 255
_RULE_PROPERTIES = ("id", "displayName", "sequence", "isEnabled")
_LIST_OPTIONS = ("select", "expand", "filter", "orderby", "count", "top", "skip")
_LEVELS = 2  # of childFolders within $expand
_OF_MAIL = {"id": "String 0x3613", "value": "IPF.Note"}


async def list_folders(request: GraphRequest) -> Response:
    """GET mailFolders, the top level, or childFolders."""
    every, folders = await _folders_in(request)
    options = request.collection_options(_LIST_OPTIONS, serializer.FOLDER_PROPERTIES, "mailFolder")
    selected = select_folders(folders, options)
    within = f"('{quote(request.folder_id)}')/childFolders" if request.folder_id else ""
    to_json = _json_function(request, options.expand, every)
    return request.page(selected, options, to_json, context=f"{_context(request)}{within}")


async def count_folders(request: GraphRequest) -> Response:
    """GET $count of mailFolders or childFolders: return the number of folders as text."""
    options = request.options({"filter"})
    _, folders = await _folders_in(request)
    count = len(select_folders(folders, options))
    return Response(str(count), headers={"content-type": "text/plain"})


async def get_folder(request: GraphRequest) -> Response:
    """GET one mail folder."""
    options = request.options({"select", "expand"}, serializer.FOLDER_PROPERTIES, "mailFolder")
    folder = await _find_folder(request)
    if unchanged := request.not_modified(serializer.folder_version(folder)):
        return unchanged
    context = request.context(f"{_context(request)}/$entity")
    every = await request.store.folders.every(request.mailbox) if options.expand else ()
    to_json = _json_function(request, options.expand, every)
    resource = {**context, **to_json(folder, options.select)}
    return json_response(resource, headers=etag_field(serializer.folder_version(folder)))


async def create_folder(request: GraphRequest) -> Response:
    """POST mailFolders or childFolders: create a folder."""
    resource = await request.json_object("mailFolder")
    kind = resource.get("@odata.type")
    if isinstance(kind, str) and kind.rpartition(".")[2].lower() == "mailsearchfolder":
        raise errors.not_implemented("The resource mailSearchFolder")
    name = _display_name(resource)
    if name is None:
        raise missing_property("displayName")
    created = await request.store.folders.create(request.mailbox, name, parent_id=request.folder_id)
    return _folder_response(request, created)


async def change_folder(request: GraphRequest) -> Response:
    """PATCH: change the display name."""
    name = _display_name(await request.json_object("mailFolder"))
    async with _required_version(request):
        folder = await _find_folder(request)
        if name is not None and name != folder.display_name:
            folder = await request.store.folders.rename(request.mailbox, folder.id, name)
    return _folder_response(request, folder, is_new=False)


async def move_folder(request: GraphRequest) -> Response:
    """POST move: move the folder and its child folders into another folder."""
    parent_id = destination_id(await request.json_object(), "move")
    folders, folder_id = request.store.folders, request.folder_id
    async with _required_version(request):
        moved = await folders.move(request.mailbox, folder_id, parent_id=parent_id)
    return _folder_response(request, moved)


async def copy_folder(request: GraphRequest) -> Response:
    """POST copy: copy the folder with its child folders and messages into another folder."""
    parent_id = destination_id(await request.json_object(), "copy")
    copied = await request.store.folders.copy(
        request.mailbox, request.folder_id, parent_id=parent_id
    )
    return _folder_response(request, copied)


async def list_rules(request: GraphRequest) -> Response:
    """GET messageRules: an empty list; mail-flow rules are the administrator's."""
    request.options({"select", "top"}, _RULE_PROPERTIES, "messageRule")
    folder = await _find_folder(request)
    context = request.context(f"{_context(request)}('{folder.id}')/messageRules")
    return collection_response(context, ())


async def _folders_in(request: GraphRequest) -> tuple[Sequence[Folder], Sequence[Folder]]:
    """Return all folders, and the children of the folder in the path, or the top level
    without one.
    """
    parent_id = (await _find_folder(request)).id if request.folder_id else serializer.ROOT_FOLDER_ID
    folders = await request.store.folders.every(request.mailbox)
    children = [
        folder for folder in folders if (folder.parent_id or serializer.ROOT_FOLDER_ID) == parent_id
    ]
    return folders, children


def _json_function(
    request: GraphRequest,
    expand: str | None,
    every: Sequence[Folder],
    *,
    levels: int = _LEVELS,
    bytes_max: int = 0,
) -> Callable[[Folder, Collection[str]], Mapping[str, Any]]:
    """Return a function from a folder to its JSON with what $expand asks for.

    $expand returns child folders, ten by default as in Graph, and extended properties. Each level
    of child folders gets half of the octets, `bytes_max`, of the list above it. Raises ApiError
    400.
    """
    known = request.selectable(serializer.FOLDER_PROPERTIES, "mailFolder")
    expansion = parse_expand(expand, of_folders=known if levels else ())
    if expansion.multiple:
        raise bad_request(f"$expand: expected childFolders or {SINGLE}($filter=…).")
    names = [name for name in expansion.single if name in FOLDER_COMPUTED]
    bytes_max = (bytes_max or request.page_bytes) // 2
    by_parent: dict[str, list[Folder]] = {}
    if options := expansion.children:
        child_json = _json_function(
            request, options.expand, every, levels=levels - 1, bytes_max=bytes_max
        )
        for child in select_folders(every, options):
            by_parent.setdefault(child.parent_id or serializer.ROOT_FOLDER_ID, []).append(child)

    def to_json(folder: Folder, selected: Collection[str]) -> Mapping[str, Any]:
        resource = serializer.folder_json(folder, selected, is_beta=request.is_beta)
        if names:
            values = ((shown_id(name), FOLDER_COMPUTED[name](folder)) for name in names)
            resource[SINGLE] = [{"id": name, "value": value} for name, value in values]
        if options:
            children = by_parent.get(folder.id, [])
            page = children[options.skip : options.skip + options.top]
            items = fitting((child_json(child, options.select) for child in page), bytes_max)
            resource[CHILD_FOLDERS] = items
            if (end := options.skip + len(items)) < len(children):
                path = f"users/{quote(request.mailbox)}/mailFolders/{folder.id}/childFolders"
                link = options.next_link(f"{request.root_url()}/{path}", skip=end)
                resource[f"{CHILD_FOLDERS}@odata.nextLink"] = link
        return resource

    return to_json


async def delete_folder(request: GraphRequest, *, permanently: bool = False) -> Response:
    """DELETE: move the folder to Deleted Items; delete it permanently if it is there already."""
    folders, folder_id = request.store.folders, request.folder_id
    async with _required_version(request):
        await folders.delete(request.mailbox, folder_id, permanently=permanently)
    return Response(status_code=204)


# The handler of POST permanentDelete.
remove_folder = partial(delete_folder, permanently=True)


@asynccontextmanager
async def _required_version(request: GraphRequest) -> AsyncIterator[None]:
    """Check If-Match before a change of a folder; conditional changes wait for each other.

    Raises ApiError 412. Other programs may still change the folder between check and change.
    """
    keys = request.condition.change_keys
    if not keys:
        yield
        return
    async with request.patch_lock:
        if (version := serializer.folder_version(await _find_folder(request))) not in keys:
            raise errors.CHANGED(f'If-Match: the folder has the ETag W/"{version}" now.')
        yield


async def _find_folder(request: GraphRequest) -> Folder:
    return await request.store.folders.get(request.mailbox, request.folder_id)


def _display_name(resource: Mapping[str, Any]) -> str | None:
    """Return the displayName of a mailFolder's JSON, None if it has none."""
    if read_boolean(resource.get("isHidden") or False, "isHidden"):
        raise unsupported("isHidden", "hidden folders are not supported; omit it or send false")
    for name in (SINGLE, MULTIPLE):
        if resource.get(name) not in (None, [], [_OF_MAIL]):
            raise unsupported(name, "folders keep no extended properties but the class IPF.Note")
    if resource.get("displayName") is None:
        return None
    return read_header_text(resource["displayName"], "displayName", longest=_NAME_CHARACTERS)


def _context(request: GraphRequest) -> str:
    return f"{request.owner}/mailFolders"


def _folder_response(request: GraphRequest, folder: Folder, *, is_new: bool = True) -> Response:
    return request.changed(
        f"mailFolders/{folder.id}",
        f"{_context(request)}/$entity",
        serializer.folder_json(folder),
        is_new=is_new,
        change_key=serializer.folder_version(folder),
    )
