"""Mail folders: list, get, create, rename, move and delete.

On the path: none of a message's; the store changes its directories.
Holds: a folder's id stays whatever it is called and wherever it is; a 201 is durable.
Fails: ApiError for what cannot be read; 403 for well-known folders, 409 for a name that is there.
Standards: Graph's mailFolder resource type.
"""

from urllib.parse import quote

from starlette.responses import Response

from relay.graph.graph_request import Visit
from relay.graph.json_values import (
    a_boolean,
    destination_id,
    header_text,
    is_annotation,
    json_object,
    missing,
    unknown_property,
    unsupported,
)
from relay.graph.messages import list_these_folders
from relay.graph.serializer import FOLDER_PROPERTIES, ROOT_FOLDER_ID, show_folder
from relay.http.errors import ApiError
from relay.http.gateway import json_response
from relay.mailbox.types import Folder, ProtectedFolderError

_NAME_CHARACTERS = 255
_RESOURCE = "microsoft.graph.mailFolder"
# What clients send back as they got it: the server's to say.
_READ_ONLY = frozenset(
    (
        *("id", "parentFolderId", "childFolderCount", "unreadItemCount", "totalItemCount"),
        *("sizeInBytes", "wellKnownName"),
    )
)


async def list_folders(visit: Visit) -> Response:
    """GET the folders in the root of the mailbox."""
    every = await visit.door.store.list_folders(visit.mailbox)
    return list_these_folders(visit, [one for one in every if not one.parent_id])


async def list_children(visit: Visit) -> Response:
    """GET the folders within one."""
    parent = await _found(visit)
    every = await visit.door.store.list_folders(visit.mailbox)
    parent_id = "" if parent.id == ROOT_FOLDER_ID else parent.id
    return list_these_folders(visit, [one for one in every if one.parent_id == parent_id])


async def get_folder(visit: Visit) -> Response:
    """GET one mail folder."""
    options = visit.options({"select"}, FOLDER_PROPERTIES)
    return _folder(visit, await _found(visit), select=options.select)


async def create_folder(visit: Visit) -> Response:
    """POST a folder: into the root, or as a child of the one that the path names."""
    visit.options()
    name = _display_name(await visit.call.body())
    if name is None:
        raise missing("displayName")
    made = await visit.door.store.create_folder(visit.mailbox, name, parent_id=visit.folder_id)
    location = f"{visit.root_url()}/users/{quote(visit.mailbox)}/mailFolders/{made.id}"
    return _folder(visit, made, status=201, headers={"location": location})


async def change_folder(visit: Visit) -> Response:
    """PATCH: the display name."""
    visit.options()
    name = _display_name(await visit.call.body())
    folder = await _found(visit)
    if name is not None and name != folder.display_name:
        folder = await visit.door.store.rename_folder(visit.mailbox, folder.id, name)
    return _folder(visit, folder)


async def move_folder(visit: Visit) -> Response:
    """POST move: into another folder, with all that is within it."""
    visit.options()
    parent_id = destination_id(json_object(await visit.call.body()), "microsoft.graph.move")
    store, folder_id = visit.door.store, visit.folder_id
    try:
        moved = await store.move_folder(visit.mailbox, folder_id, parent_id=parent_id)
    except ProtectedFolderError as error:
        raise ApiError(403, "ErrorMoveDistinguishedFolder", str(error)) from error
    return _folder(visit, moved, status=201)


async def delete_folder(visit: Visit) -> Response:
    """DELETE: to Deleted Items with all that is within it, and from there for good."""
    visit.options()
    return await _delete(visit, permanently=False)


async def remove_folder(visit: Visit) -> Response:
    """POST permanentDelete: at once for good."""
    visit.options()
    return await _delete(visit, permanently=True)


async def _delete(visit: Visit, *, permanently: bool) -> Response:
    store = visit.door.store
    try:
        await store.delete_folder(visit.mailbox, visit.folder_id, permanently=permanently)
    except ProtectedFolderError as error:
        raise ApiError(403, "ErrorDeleteDistinguishedFolder", str(error)) from error
    return Response(status_code=204)


async def _found(visit: Visit) -> Folder:
    return await visit.door.store.get_folder(visit.mailbox, visit.folder_id)


def _display_name(body: bytes) -> str | None:
    """Read a mailFolder; None if it has no name."""
    given = json_object(body)
    for name in given:
        known = name in ("displayName", "isHidden") or name in _READ_ONLY
        if not known and not is_annotation(name):
            raise unknown_property(name, _RESOURCE)
    if a_boolean(given.get("isHidden") or False, "isHidden"):
        raise unsupported("isHidden", "there are no hidden folders; leave it out or false")
    if given.get("displayName") is None:
        return None
    return header_text(given["displayName"], "displayName", longest=_NAME_CHARACTERS)


def _folder(
    visit: Visit,
    folder: Folder,
    *,
    status: int = 200,
    select: tuple[str, ...] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    context = visit.context(f"users('{quote(visit.mailbox)}')/mailFolders/$entity")
    shown = {**context, **show_folder(folder, select)}
    return json_response(shown, status=status, headers=headers)
