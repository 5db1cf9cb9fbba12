"""translateExchangeIds: each id is translated to itself."""

from typing import Any

import pytest

from relay.front_door.graph.users import IDS_MAX
from tests.support.graph_fakes import GraphInMemory, refused, to

PATH = "/v1.0/me/translateExchangeIds"
TYPES = {"sourceIdType": "restId", "targetIdType": "restImmutableEntryId"}


async def test_ids_are_returned_unchanged_and_name_the_same_items(graph: GraphInMemory) -> None:
    message = {"subject": "s", "toRecipients": to("c@a.test")}
    draft = (await graph.http.post("/v1.0/me/messages", json=message)).json()["id"]
    answer = await graph.http.post(PATH, json={"inputIds": [draft, "inbox"], **TYPES})
    assert answer.status_code == 200
    assert answer.json() == {
        "@odata.context": "http://relay.test:8025/v1.0/$metadata"
        "#Collection(microsoft.graph.convertIdResult)",
        "value": [{"sourceId": one, "targetId": one} for one in (draft, "inbox")],
    }
    assert (await graph.http.get(f"/v1.0/me/messages/{draft}")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"InputIds": ["a"], "SourceIdType": "restId", "TargetIdType": "restId"},
        {"inputIds": ["a"], "sourceIdType": "RestImmutableEntryId", "targetIdType": "RESTID"},
    ],
)
async def test_names_and_types_match_in_any_case(graph: GraphInMemory, body: Any) -> None:
    answer = await graph.http.post("/v1.0/users/alice@example.test/TranslateExchangeIds", json=body)
    assert answer.json()["value"] == [{"sourceId": "a", "targetId": "a"}]


async def test_a_malformed_id_has_its_own_error(graph: GraphInMemory) -> None:
    body = {"inputIds": ["good", "bad id", ""], **TYPES}
    good, bad, empty = (await graph.http.post(PATH, json=body)).json()["value"]
    assert good == {"sourceId": "good", "targetId": "good"}
    for one, source in ((bad, "bad id"), (empty, "")):
        assert one["sourceId"] == source
        assert one["errorDetails"]["code"] == "ErrorInvalidIdMalformed"
        assert "targetId" not in one


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"sourceIdType": "entryId"}, 501, "NotImplemented"),
        ({"targetIdType": "ewsId"}, 501, "NotImplemented"),
        ({"targetIdType": "immutableEntryId"}, 501, "NotImplemented"),
        ({"targetIdType": "smtpId"}, 400, "RequestBodyRead"),
        ({"sourceIdType": 1}, 400, "RequestBodyRead"),
        ({"sourceIdType": None}, 400, "ErrorRequiredPropertyMissing"),
        ({"inputIds": None}, 400, "ErrorRequiredPropertyMissing"),
        ({"inputIds": "a"}, 400, "RequestBodyRead"),
        ({"inputIds": [1]}, 400, "RequestBodyRead"),
        ({"inputIds": ["a"] * (IDS_MAX + 1)}, 400, "ErrorInvalidRequest"),
        ({"colour": "red"}, 400, "RequestBodyRead"),
    ],
)
async def test_bad_bodies_are_refused(
    graph: GraphInMemory, change: dict[str, Any], status: int, code: str
) -> None:
    body = {"inputIds": ["a"], **TYPES, **change}
    refused(await graph.http.post(PATH, json=body), status, code)


async def test_bad_requests_are_refused(graph: GraphInMemory) -> None:
    refused(await graph.http.post(PATH, content=b"["), 400, "UnableToDeserializePostBody")
    refused(await graph.http.get(PATH), 405, "Request_BadRequest")
    refused(await graph.http.post(f"{PATH}?$top=1", json={}), 400, "BadRequest")
