"""The tags of messages, which only a development relay has: the categories of all their copies."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from relay.front_door.api.dependencies import ApiDependencies, Principal
from relay.front_door.http.errors import bad_request
from relay.store.journeys.message_list import IndexFailedError, split_tags


async def tags_of(means: ApiDependencies, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the tags of messages that have any, by name, sorted."""
    index = means.journeys.places.index
    with suppress(IndexFailedError):
        return await index.tags_of(names) if index is not None else {}
    return {}


async def set_tags(means: ApiDependencies, tags: Mapping[str, str], principal: Principal) -> None:
    """Replace the tags of messages by those with commas between them. Raises ApiError 400, 403."""
    principal.check_may_change_content()
    try:
        read = {name: split_tags(text) for name, text in tags.items()}
    except ValueError as error:
        raise bad_request(f"Tags: {error}.") from None
    if (index := means.journeys.places.index) is not None:
        await index.set_tags(read)
    means.changes.notify()
