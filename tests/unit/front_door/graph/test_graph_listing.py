"""Lists of messages and folders: options, pages, counts."""

import pytest

from tests.support.graph_fakes import WatchedGraph, to
from tests.support.tables import each_row

MESSAGES = "/v1.0/me/messages"
PEOPLE = ("carol@a.test", "dave@b.test", "erin@a.test")


@pytest.fixture
async def filled(graph: WatchedGraph) -> WatchedGraph:
    """A mailbox with twelve messages one minute apart."""
    for number in range(12):
        message = {
            "subject": f"Report {number:02} {'Größe' if number % 3 else 'grösser'}",
            "body": {"contentType": "text", "content": f"word{number} common"},
            "toRecipients": to(PEOPLE[number % 3], *PEOPLE[: number % 2]),
            "importance": ("low", "normal", "high")[number % 3],
            "isRead": number % 2 == 0,
        }
        answer = await graph.http.post(MESSAGES, json=message)
        assert answer.status_code == 201, answer.text
        graph.store.clock.advance(60)
    return graph


async def listed(graph: WatchedGraph, query: str = "", *, path: str = MESSAGES) -> list[int]:
    """Return the numbers of the listed messages, over all pages."""
    url: str | None = f"{path}?{query}"
    numbers: list[int] = []
    while url:
        answer = await graph.http.get(url)
        assert answer.status_code == 200, answer.text
        numbers += [int(one["subject"].split()[1]) for one in answer.json()["value"]]
        url = answer.json().get("@odata.nextLink")
    return numbers


@each_row(
    "query, numbers",
    [
        ("", [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("$orderby=receivedDateTime", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("$orderby=ReceivedDateTime%20DESC&$skip=9", [2, 1, 0]),
        (
            "$orderby=importance desc,receivedDateTime asc&$top=3",
            [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9],
        ),
        ("filter=isRead eq false&orderby=subject&top=2", [1, 3, 5, 7, 9, 11]),
        ("%24filter=isRead+eq+false+and+importance+eq+%27high%27", [11, 5]),
        ('$search="subject:große OR word0"', [11, 10, 8, 7, 5, 4, 2, 1, 0]),
        ('$search="common"&$filter=isRead eq true&$orderby=subject&$top=4', [0, 2, 4, 6, 8, 10]),
    ],
)
async def test_the_messages_of_a_list(filled: WatchedGraph, query: str, numbers: list[int]) -> None:
    assert await listed(filled, query) == numbers
    assert await listed(filled, query, path="/v1.0/me/mailFolders/Drafts/messages") == numbers
    counted = "&".join(one for one in query.split("&") if "filter" in one or "search" in one)
    answer = await filled.http.get(f"{MESSAGES}/$count?{counted}")
    assert (answer.text, "skip" in query) in ((str(len(numbers)), False), ("12", True))
    assert answer.headers["content-type"] == "text/plain"


async def test_the_next_link_carries_every_option(filled: WatchedGraph) -> None:
    options = {
        "$select": "id,subject",
        "$filter": "contains(subject,'&') eq false and subject ne 'it''s 100% +1'",
        "$search": '"common"',
        "$orderby": "subject desc,id",
        "$count": "true",
    }
    answer = (await filled.http.get(MESSAGES, params=options | {"$top": "5", "$skip": "1"})).json()
    assert answer["@odata.count"] == 12
    assert all(set(one) == {"@odata.etag", "id", "subject"} for one in answer["value"])
    link = answer["@odata.nextLink"]
    assert link.startswith("http://relay.test:8025/v1.0/me/messages?$select=id,subject&$filter=")
    query = dict(filled.http.build_request("GET", link).url.params)
    assert query.pop("$skiptoken")
    assert query == options | {"$top": "5"}
    rest = (await filled.http.get(link)).json()
    assert (rest["@odata.count"], len(rest["value"])) == (12, 5)


async def test_the_default_of_top_is_10(filled: WatchedGraph) -> None:
    page = (await filled.http.get(MESSAGES)).json()
    assert len(page["value"]) == 10
    assert "@odata.count" not in page
    assert "preference-applied" not in (await filled.http.get(MESSAGES)).headers


@each_row(
    "prefer, query, size, applied",
    [
        ("odata.maxpagesize=3", "", 3, "odata.maxpagesize=3"),
        ("odata.maxpagesize=7", "?$top=3", 3, "odata.maxpagesize=7"),
        ("odata.maxpagesize=" + "9" * 5000, "", 12, "odata.maxpagesize=1000"),
        ("odata.maxpagesize=0", "", 10, None),
        ("odata.maxpagesize=x", "", 10, None),
    ],
)
async def test_the_preferred_size_of_a_page(
    filled: WatchedGraph, prefer: str, query: str, size: int, applied: str | None
) -> None:
    answer = await filled.http.get(MESSAGES + query, headers={"prefer": prefer})
    page = answer.json()
    assert (len(page["value"]), answer.headers.get("preference-applied")) == (size, applied)
    if "@odata.nextLink" in page:  # the next page is no larger, whatever its request prefers
        rest = (await filled.http.get(page["@odata.nextLink"])).json()
        assert len(rest["value"]) == min(size, 12 - size)


# -- folders

FOLDERS = "/v1.0/me/mailFolders"
IDS = ["inbox", "drafts", "sentitems", "deleteditems", "junkemail", "archive", "outbox"]


async def folders(graph: WatchedGraph, query: str) -> list[str]:
    url: str | None = f"{FOLDERS}?{query}"
    ids: list[str] = []
    while url:
        answer = await graph.http.get(url)
        assert answer.status_code == 200, answer.text
        ids += [one["id"] for one in answer.json()["value"]]
        url = answer.json().get("@odata.nextLink")
    return ids


@each_row(
    "query, expected",
    [
        ("$filter=displayName eq 'Inbox'", ["inbox"]),
        ("$filter=contains(displayName,'item')&$top=1", ["sentitems", "deleteditems"]),
        (
            "$filter=not endswith(displayName,'s') and displayName ne null",
            ["inbox", "junkemail", "archive", "outbox"],
        ),
        ("$filter=0 eq unreadItemCount and not isHidden and id ge 's'", ["sentitems"]),
        ("$orderby=displayName", sorted(IDS)),
        ("$orderby=displayName desc&$top=2", sorted(IDS, reverse=True)),
        ("$orderby=totalItemCount,displayName", sorted(IDS)),
        ("$skip=4", ["junkemail", "archive", "outbox"]),
    ],
)
async def test_the_folders_of_a_list(graph: WatchedGraph, query: str, expected: list[str]) -> None:
    assert await folders(graph, query) == expected
