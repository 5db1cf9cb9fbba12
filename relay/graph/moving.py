"""Actions that put a message somewhere else: move, copy, permanentDelete.

On the path: none of a message's; a draft that is being sent stays where it is.
Holds: a moved message keeps its id; a 201 is durable.
Fails: ApiError for what cannot be read; 404 for a folder that is not there, 409 while it is sent.
Standards: Graph's message: move, copy, permanentDelete.
"""

from starlette.responses import Response

from relay.graph.messages import found_message, message_answer
from relay.graph.parameters import destination_id
from relay.graph.values import json_object
from relay.graph.visit import Visit


async def move_message(visit: Visit) -> Response:
    """POST move: the message, with the id it had, in another folder."""
    destination = await _destination(visit, "microsoft.graph.move")
    store = visit.door.store
    moved = await store.move_message(visit.mailbox, visit.message_id, destination)
    return message_answer(visit, moved, status=201)


async def copy_message(visit: Visit) -> Response:
    """POST copy: a message of its own."""
    destination = await _destination(visit, "microsoft.graph.copy")
    store = visit.door.store
    copy = await store.copy_message(visit.mailbox, visit.message_id, destination)
    return message_answer(visit, copy, status=201)


async def remove_message(visit: Visit) -> Response:
    """POST permanentDelete: for good, wherever it is."""
    visit.options()
    if visit.folder_id:
        await found_message(visit)
    await visit.door.store.remove_message(visit.mailbox, visit.message_id)
    return Response(status_code=204)


async def _destination(visit: Visit, action: str) -> str:
    visit.options()
    destination = destination_id(json_object(await visit.call.body()), action)
    if visit.folder_id:
        await found_message(visit)
    return destination
