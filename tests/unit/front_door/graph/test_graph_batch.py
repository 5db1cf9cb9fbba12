"""$batch: requests in one body, their order, their responses, and what a malformed batch gets."""

import base64
import json
from typing import Any

import httpx
import pytest

from relay.base.pressure import PressureLevel, PressureReason, PressureState
from relay.front_door.graph import batch
from relay.front_door.http.errors import ApiError
from tests.support.graph_fakes import OnDisk, WatchedGraph, refused, to
from tests.support.tables import each_row

MESSAGE = {"subject": "one of a batch", "toRecipients": to("bob@example.test")}
MIME = b"From: alice@example.test\r\nTo: bob@example.test\r\nSubject: as MIME\r\n\r\nHello.\r\n"


def send(number: str = "1", **item: Any) -> dict[str, Any]:
    made = {"id": number, "method": "POST", "url": "/me/sendMail", "body": {"message": MESSAGE}}
    return made | {"headers": {"Content-Type": "application/json"}} | item


def get(number: str, url: str, **item: Any) -> dict[str, Any]:
    return {"id": number, "method": "GET", "url": url} | item


async def post(http: httpx.AsyncClient, *items: object, **options: Any) -> httpx.Response:
    return await http.post(
        "http://relay.test:8025/v1.0/$batch", json={"requests": items}, **options
    )


GONE = 16 * "0"


async def responses(http: httpx.AsyncClient, *items: object, **options: Any) -> dict[str, Any]:
    """Return the responses of a batch by id."""
    answer = await post(http, *items, **options)
    assert answer.status_code == 200, answer.text
    found = {one["id"]: one for one in answer.json()["responses"]}
    assert len(found) == len(items)
    return found


async def test_a_batch_answers_each_request(graph: WatchedGraph) -> None:
    found = await responses(graph.http, send(), get("2", "me"), get("3", f"/me/messages/{GONE}"))
    assert {one: found[one]["status"] for one in found} == {"1": 202, "2": 200, "3": 404}
    assert "body" not in found["1"]
    assert found["1"]["headers"]["x-relay-message-id"]
    assert found["2"]["body"]["mail"] == "alice@example.test"
    assert found["2"]["headers"]["Content-Type"] == "application/json"
    assert found["3"]["body"]["error"]["code"] == "ErrorItemNotFound"
    assert (
        found["3"]["headers"]["request-id"]
        == (found["3"]["body"]["error"]["innerError"]["request-id"])
    )
    assert graph.sent.subject == "one of a batch"


@each_row(
    "url",
    [
        *("/me", "me", "//me", "/v1.0/me", "v1.0/me", "/BETA/Me", "/me?$select=mail"),
        *("http://relay.test:8025/v1.0/me", "/users/alice%40example.test"),
        "/users/alice@example.test?$select=id, mail",
    ],
)
async def test_the_forms_of_a_url(graph: WatchedGraph, url: str) -> None:
    found = await responses(graph.http, get("1", url))
    assert found["1"]["body"]["mail"] == "alice@example.test"


@pytest.mark.parametrize("times", [1, 2])
async def test_mime_is_base64_once_or_twice(graph: WatchedGraph, times: int) -> None:
    text = MIME
    for _ in range(times):
        text = base64.b64encode(text)
    item = send(body=text.decode(), headers={"Content-Type": "text/plain"})
    assert (await responses(graph.http, item))["1"]["status"] == 202
    assert graph.sent == MIME


async def test_content_that_is_not_json_is_base64(on_disk: OnDisk) -> None:
    draft = (await on_disk.http.post("/messages", json=MESSAGE)).json()["id"]
    octets = base64.urlsafe_b64encode(MIME + b"\xff\xfe").decode().rstrip("=")
    found = await responses(
        on_disk.http,
        {
            "id": "1",
            "method": "PUT",
            "url": f"/me/messages/{draft}/$value",
            "headers": {"Content-Type": "message/rfc822"},
            "body": octets,
        },
        get("2", f"/me/messages/{draft}/$value", dependsOn=["1"]),
    )
    assert found["1"]["status"] == 200
    assert base64.b64decode(found["2"]["body"]) == MIME + b"\xff\xfe"
    assert found["2"]["headers"]["Content-Type"] == "text/plain"


@pytest.mark.parametrize("spelling", ["dependsOn", "depends_on"])
async def test_a_request_waits_for_those_it_depends_on(on_disk: OnDisk, spelling: str) -> None:
    first = {"id": "1", "method": "POST", "url": "/me/mailFolders", "body": {"displayName": "A"}}
    again = dict(first, id="2", **{spelling: ["1"]})
    found = await responses(
        on_disk.http,
        get("4", "/me", **{spelling: ["3"]}),
        get("3", "/me", **{spelling: ["1", "2"]}),
        again,
        first,
    )
    assert [found[one]["status"] for one in "1234"] == [201, 409, 424, 424]
    assert found["3"]["body"]["error"]["code"] == "FailedDependency"


async def test_numbers_are_ids(graph: WatchedGraph) -> None:
    items = [get("", "/me", id=1), get("", "/me", id=20, dependsOn=[1, "1"]), get("-3", "/me")]
    found = await responses(graph.http, *items)
    assert {one: found[one]["status"] for one in found} == {"1": 200, "20": 200, "-3": 200}


@each_row(
    "items, named",
    [
        ([], "found none"),
        ([get("1", "/me"), get("1", "/me")], "requests[1].id"),
        ([{"method": "GET", "url": "/me"}], "`id`"),
        ([get("", "/me")], "requests[0].id"),
        *(([get("1", "/me", id=one)], "$.id") for one in (True, None, 1.5)),
        *(([get("1", "/me", dependsOn=[one])], "$.dependsOn") for one in (True, None, 1.5)),
        ([get("1", "/me", id=1), get("1", "/me")], "Request Id 1 has to be unique in a batch."),
        ([{"id": "1", "url": "/me"}], "`method`"),
        ([{"id": "1", "method": "GET"}], "`url`"),
        ([get("1", "/me", dependsOn=["2"])], "requests[0].dependsOn: found '2'"),
        ([get("1", "/me", dependsOn=["1"])], "cycle"),
        ([get("1", "/me", dependsOn=["2"]), get("2", "/me", depends_on=["1"])], "cycle"),
        ([get("1", "/me", dependsOn="2")], "$.dependsOn"),
        ([get("1", "")], "requests[0].url"),
        ([get("1", "https://graph.example/v1.0/me")], "requests[0].url"),
        ([get("1", "/me", headers={"a b": "c"})], "requests[0].headers"),
        ([get("1", "/me", headers={"a": "c\r\nd: e"})], "requests[0].headers.a"),
        ([get("1", "/me", headers={"a": 1})], "requests[0]"),
        ([dict(get("1", "/me"), method="G T")], "requests[0].method"),
        ([send(body=["x"])], "requests[0].body"),
        ([send(body="x")], "requests[0].body"),
        ([send(body="@", headers={"Content-Type": "image/png"})], "requests[0].body"),
        ([send(body={}, headers={"Content-Type": "image/png"})], "requests[0].body"),
        (["x"], "requests[0]"),
    ],
)
async def test_a_malformed_batch_runs_nothing(
    graph: WatchedGraph, items: list[Any], named: str
) -> None:
    answer = await post(graph.http, *items, *([send("sent")] if items else []))
    assert named in refused(answer, 400, "BadRequest")
    assert graph.store.submitted == []


def test_url_and_headers_of_a_request_are_bounded() -> None:
    def parsed(url: str, **headers: str) -> object:
        body = json.dumps({"requests": [get("1", url, headers=headers)]}).encode()
        return batch.parse_batch(body, version="v1.0", base_url="http://relay.test:8025")

    assert parsed("/me" + 32_768 * "a", b=32_764 * "b")
    for url, value in (("/me" + 65_534 * "a", ""), ("/me", 65_533 * "b")):
        with pytest.raises(ApiError, match=r"requests\[0\]: found 6553[78] characters"):
            parsed(url, b=value)


async def test_a_batch_in_a_batch_and_another_method(graph: WatchedGraph) -> None:
    inner = {"id": "1", "method": "POST", "url": "/$batch", "body": {"requests": [get("1", "/me")]}}
    found = await responses(graph.http, inner)
    assert (found["1"]["status"], found["1"]["body"]["error"]["code"]) == (400, "BadRequest")
    answer = await graph.http.get("/v1.0/$batch")
    assert refused(answer, 405, "Request_BadRequest")
    assert answer.headers["allow"] == "POST"


async def test_each_request_is_authorized_and_routed_like_a_single_one(graph: WatchedGraph) -> None:
    as_bob = {"headers": {"Authorization": "Bearer bob", "Host": "elsewhere"}}
    found = await responses(
        graph.http,
        get("1", "/me", **as_bob),
        get("2", "/users/bob@example.test/messages"),
        get("3", "/nonsense"),
        get("4", "/me/sendMail"),
    )
    assert found["1"]["body"]["mail"] == "alice@example.test"
    assert "relay.test:8025" in found["1"]["body"]["@odata.context"]
    assert [found[one]["status"] for one in "234"] == [403, 400, 405]
    assert found["4"]["headers"]["Allow"] == "POST"
    answer = await post(graph.http, get("1", "/me"), headers={"authorization": "Bearer mallory"})
    assert refused(answer, 401, "InvalidAuthenticationToken")


async def test_pressure_rejects_the_requests_that_add_mail(graph: WatchedGraph) -> None:
    graph.pressure.state = PressureState({PressureReason.QUEUE: PressureLevel.REFUSE})
    found = await responses(graph.http, send(), get("2", "/me"))
    assert [found[one]["status"] for one in "12"] == [503, 200]
    assert found["1"]["headers"]["Retry-After"] == "30"


async def test_responses_that_are_too_large_together(
    on_disk: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "RESPONSES_BYTES_MAX", 30_000)
    draft = (await on_disk.http.post("/messages", json=MESSAGE)).json()["id"]
    attached = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": "a",
        "contentBytes": base64.b64encode(bytes(20_000)).decode(),
    }
    await on_disk.http.post(f"/messages/{draft}/attachments", json=attached)
    listed = (await on_disk.http.get(f"/messages/{draft}/attachments")).json()["value"]
    url = f"/me/messages/{draft}/attachments/{listed[0]['id']}/$value"
    found = await responses(on_disk.http, get("1", url), get("2", url, dependsOn=["1"]))
    assert len(base64.b64decode(found["1"]["body"])) == 20_000
    assert found["2"]["status"] == 413
    assert "alone" in found["2"]["body"]["error"]["message"]
