"""Actions that put a message somewhere else: move, copy, permanentDelete.

On the path: none of a message's; a draft that is being sent stays where it is.
Holds: a moved message keeps its id; a 201 is durable.
Fails: ApiError for what cannot be read; 404 for a folder that is not there, 409 while it is sent,
    412 where If-Match names another version.
Standards: Graph's message: move, copy, permanentDelete.
"""

from starlette.responses import Response

from relay.graph.messages import message_answer
from relay.graph.parameters import destination_id
from relay.graph.values import json_object
from relay.graph.visit import Visit


async def move_message(visit: Visit) -> Response:
    """POST move: the message, with the id it had, in another folder."""
    destination = await _destination(visit, "microsoft.graph.move")
    store = visit.door.store
    moved = await store.move_message(
        visit.mailbox, visit.message_id, destination, condition=visit.condition
    )
    return message_answer(visit, moved, status=201)


async def copy_message(visit: Visit) -> Response:
    """POST copy: a message of its own."""
    destination = await _destination(visit, "microsoft.graph.copy")
    store = visit.door.store
    copy = await store.copy_message(
        visit.mailbox, visit.message_id, destination, condition=visit.condition
    )
    return message_answer(visit, copy, status=201)


async def remove_message(visit: Visit) -> Response:
    """POST permanentDelete: for good, wherever it is."""
    visit.options()
    store = visit.door.store
    await store.remove_message(visit.mailbox, visit.message_id, condition=visit.condition)
    return Response(status_code=204)


async def _destination(visit: Visit, action: str) -> str:
    visit.options()
    return destination_id(json_object(await visit.call.body()), action)
