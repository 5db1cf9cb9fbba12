"""$search on a mail store: NEAR, sizes, categories, kinds and periods."""

import pytest

from tests.support.graph_fakes import OnDisk, refused
from tests.support.tables import each_row

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
        ("red NEAR wine", {"near", "html"}),
        ("red ONEAR(n=3) wine", {"near", "html"}),
        ("red NEAR(2) wine", {"html"}),
        ("red NEAR(n=50) wine", {"near", "far", "html"}),
        ("re* NEAR wi*", {"near", "html"}),
        ('"\\"one two\\" NEAR red"', {"near"}),
        ("body:(red NEAR wine) NOT subject:html", {"near"}),
        ("subject:(red NEAR wine)", set()),
        ("(red NEAR wine) OR only", {"near", "html", "one"}),
        ("NOT (red NEAR wine)", {"far", "one"}),
        ("subject:(far OR one)", {"far", "one"}),
        ("size>1", set(BODIES)),
        ("size:1..2", set()),
        ('category:"big red"', {"one"}),
        ("category=red", set()),
        ("category:RED kind:email", {"one"}),
        ("kind:tasks", set()),
        ("received:today", set(BODIES)),
        ("received:yesterday", set()),
        ("received:this year red", set(BODIES)),
        ("hasattachment:no", set(BODIES)),
    ],
)
async def test_a_search_finds(filled: OnDisk, search: str, subjects: set[str]) -> None:
    assert await found(filled, search) == subjects


async def test_an_error_names_the_place(on_disk: OnDisk) -> None:
    answer = await on_disk.http.get("/messages", params={"$search": '"red AND (wine OR"'})
    text = refused(answer, 400, "BadRequest")
    assert "position 16: found the end, expected a word; it is in 'red AND (wine OR'" in text
