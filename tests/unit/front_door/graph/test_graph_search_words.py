"""$search on a mail store: sizes, categories, kinds and periods."""

import pytest

from relay.front_door.graph import graph_request
from tests.support.graph_fakes import OnDisk, refused
from tests.support.tables import each_row

QUERY = "https://mail.example.test/v1.0/search/query"
BODIES = {
    "near": "red one two three wine",
    "far": "red " + "word " * 20 + "wine",
    "one": "only red here",
    "html": "wine and then red",
}


async def found(on_disk: OnDisk, search: str) -> set[str]:
    answer = await on_disk.http.get("/messages", params={"$search": search, "$top": "50"})
    assert answer.status_code == 200, answer.text
    return {one["subject"] for one in answer.json()["value"]}


@pytest.fixture
async def filled(on_disk: OnDisk) -> OnDisk:
    for subject, text in BODIES.items():
        message = {"subject": subject, "body": {"content": text}}
        message |= {"categories": ["Big red one"]} if subject == "one" else {}
        assert (await on_disk.http.post("/messages", json=message)).status_code == 201
    return on_disk


@each_row(
    "search, subjects",
    [
        ("re* wi* NOT subject:html", {"near", "far"}),
        ("size>1", set(BODIES)),
        ("size:1..2", set()),
        ('category:"big red"', {"one"}),
        ("received:yesterday", set()),
        ('"red & wine - … NOT * OR \\"!\\""', {"near", "far", "html"}),
        ("red kind:tasks &", set()),
    ],
)
async def test_a_search_finds(filled: OnDisk, search: str, subjects: set[str]) -> None:
    assert await found(filled, search) == subjects


async def hits(on_disk: OnDisk, **search: object) -> tuple[list[str], bool]:
    """Return the subjects that a search request finds, and whether there are more."""
    query = {"queryString": search.pop("words")}
    body = {"requests": [{"entityTypes": ["message"], "query": query, **search}]}
    answer = await on_disk.http.post(QUERY, json=body)
    assert answer.status_code == 200, answer.text
    container = answer.json()["value"][0]["hitsContainers"][0]
    assert container["total"] == len(container["hits"])
    first = search.get("from", 0)
    assert isinstance(first, int)
    for rank, hit in enumerate(container["hits"], first + 1):
        assert (hit["rank"], hit["hitId"]) == (rank, hit["resource"]["id"])
        assert (
            hit["summary"] == hit["resource"]["bodyPreview"] == BODIES[hit["resource"]["subject"]]
        )
        assert hit["resource"]["@odata.type"] == "#microsoft.graph.message"
    return [one["resource"]["subject"] for one in container["hits"]], container[
        "moreResultsAvailable"
    ]


async def test_a_search_request_has_pages_newest_first(
    filled: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest_first = ["html", "one", "far", "near"]
    assert await hits(filled, words="red") == (newest_first, False)
    assert await hits(filled, words='"one two"') == (["near"], False)
    pages = [await hits(filled, words="red", size=3, **{"from": skip}) for skip in (0, 3, 6)]
    assert pages == [(newest_first[:3], True), (newest_first[3:], False), ([], False)]
    monkeypatch.setattr(graph_request, "PAGE_BYTES_MAX", 1)
    assert await hits(filled, words="red") == (newest_first[:1], True), "memory is bounded"


async def test_search_requests_are_independent_and_of_messages_only(filled: OnDisk) -> None:
    asked = [
        {"entityTypes": ["message"], "query": {"queryString": words}} for words in ("only", "wine")
    ]
    answer = (await filled.http.post(QUERY, json={"requests": asked})).json()["value"]
    assert [one["searchTerms"] for one in answer] == [["only"], ["wine"]]
    assert [one["hitsContainers"][0]["total"] for one in answer] == [1, 3]
    for change, status, code in (
        ({"entityTypes": ["driveItem"]}, 501, "NotImplemented"),
        ({"enableTopResults": True}, 501, "NotImplemented"),
        ({"entityTypes": []}, 400, "ErrorRequiredPropertyMissing"),
        ({"size": 501}, 400, "RequestBodyRead"),
        ({"sortProperties": [{"name": "subject"}]}, 400, "BadRequest"),
        ({"query": {"queryString": "foo:bar"}}, 400, "BadRequest"),
        ({"query": {"queryTemplate": "only" + "{searchTerms}" * 700}}, 400, "BadRequest"),
    ):
        body = {"requests": [asked[0] | change]}
        refused(await filled.http.post(QUERY, json=body), status, code)
