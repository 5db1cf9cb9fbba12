"""POST /search/query: messages of the caller's own mailbox, by keywords.

Hits are sorted newest first, as in Graph without enableTopResults. `total` counts the hits of the
page. Graph: search-query, searchRequest, "Use the Microsoft Search API to search Outlook messages".
"""

from typing import Any

import msgspec
from starlette.responses import Response

from relay.front_door.graph import errors, json_values
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.messages import SLOW_SEARCH, find_page
from relay.front_door.graph.odata.expression import CHARACTERS_MAX, clause_error
from relay.front_door.graph.odata.search import keyword_condition
from relay.front_door.http.errors import bad_request, quoted
from relay.front_door.http.responses import json_response
from relay.store.mailbox.query import MessageQuery

SEARCHES_MAX = 5  # of a request
SIZE_MAX = 500
_SIZE_DEFAULT = 25
_FROM_MAX = 2**31 - 1
_SHOWN = (
    *("id", "createdDateTime", "lastModifiedDateTime", "receivedDateTime", "sentDateTime"),
    *("hasAttachments", "internetMessageId", "subject", "bodyPreview", "importance", "categories"),
    *("parentFolderId", "conversationId", "isRead", "isDraft", "webLink", "sender", "from"),
    "replyTo",
)
_TYPE = {"@odata.type": "#microsoft.graph.message"}
_REFUSED = ("sortProperties", "aggregations", "aggregationFilters", "collapseProperties")


async def search_query(request: GraphRequest) -> Response:
    """POST /search/query."""
    if request.caller.is_application:
        raise bad_request("A search of messages is only valid with delegated authentication flow.")
    requests = (await request.json_object()).get("requests")
    searches = json_values.read_array(requests, "requests", most=SEARCHES_MAX)
    if not searches:
        raise json_values.missing_property("requests")
    room = request.page_bytes // len(searches)
    responses = [
        await _search_response(request, search, f"requests[{n}]", room=room)
        for n, search in enumerate(searches)
    ]
    return json_response({**request.context("Collection(searchResponse)"), "value": responses})


async def _search_response(
    request: GraphRequest, value: object, path: str, *, room: int
) -> dict[str, Any]:
    """Return the searchResponse for one request of the body, of about `room` octets at most."""
    search = json_values.read_object(value, path)
    types = json_values.read_array(search.get("entityTypes"), f"{path}.entityTypes")
    if others := [entity_type for entity_type in types if entity_type != "message"]:
        raise errors.not_implemented(f"A search of the type {quoted(others[0])}")
    if not types:
        raise json_values.missing_property(f"{path}.entityTypes")
    if search.get("enableTopResults"):
        raise errors.not_implemented("enableTopResults")
    if refused := [name for name in _REFUSED if search.get(name)]:
        raise bad_request(f"{path}.{refused[0]}: messages cannot be searched with it.")
    query = json_values.read_object(search.get("query"), f"{path}.query")
    terms = json_values.read_string(query.get("queryString"), f"{path}.query.queryString")
    template = json_values.read_string(query.get("queryTemplate"), f"{path}.query.queryTemplate")
    if max(len(terms), len(template)) > CHARACTERS_MAX:  # the template may repeat the terms
        raise clause_error("search", f"found more than {CHARACTERS_MAX} characters")
    keywords = template.replace("{searchTerms}", terms) if template else terms
    skip = _number(search.get("from"), f"{path}.from", (0, _FROM_MAX), default=0)
    size = _number(search.get("size"), f"{path}.size", (1, SIZE_MAX), default=_SIZE_DEFAULT)
    now_us = request.dependencies.clock.time_us()
    matches = keyword_condition(keywords, now_us=now_us)
    # One hit beyond the page shows that further hits follow.
    query_of_page = MessageQuery(condition=matches, skip=skip, top=size + 1)
    ranked, is_cut = await _hits(request, query_of_page, room)
    hits = [
        {"hitId": hit["id"], "rank": rank, "summary": hit["bodyPreview"], "resource": hit}
        for rank, hit in enumerate(ranked[:size], skip + 1)
    ]
    more = is_cut or len(ranked) > size
    container = {"hits": hits, "total": len(hits), "moreResultsAvailable": more}
    return {"searchTerms": terms.split(), "hitsContainers": [container]}


def _number(value: object, path: str, limits: tuple[int, int], *, default: int) -> int:
    if value is None:
        return default
    if type(value) is not int or not limits[0] <= value <= limits[1]:
        raise json_values.invalid_value(path, value, f"a number from {limits[0]} to {limits[1]}")
    return value


async def _hits(request: GraphRequest, query: MessageQuery, room: int) -> tuple[list[Any], bool]:
    """Return the JSON of the first query.top messages, and whether `room` was too small for all.

    A page of the index ends early if bodies are large, so several pages may be read.
    """
    query = msgspec.structs.replace(query, bytes_max=room)
    hits: list[dict[str, Any]] = []
    while True:
        page = await find_page(request, query, SLOW_SEARCH)
        hits += [_TYPE | request.message_json(message, _SHOWN) for message in page.messages]
        room -= len(msgspec.json.encode(hits[len(hits) - len(page.messages) :]))
        left, after = query.top - len(page.messages), page.next_after
        if not after or left <= 0 or room <= 0:
            return hits, left > 0 and bool(after)
        query = msgspec.structs.replace(query, skip=0, after=after, top=left)
