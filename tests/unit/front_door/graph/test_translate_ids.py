"""translateExchangeIds: each id is translated to itself."""

from typing import Any

from relay.front_door.graph.users import IDS_MAX
from tests.support.graph_fakes import GraphInMemory, refused, to
from tests.support.tables import each_row

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


async def test_a_malformed_id_has_its_own_error(graph: GraphInMemory) -> None:
    body = {"inputIds": ["good", "bad id", ""], **TYPES}
    good, bad, empty = (await graph.http.post(PATH, json=body)).json()["value"]
    assert good == {"sourceId": "good", "targetId": "good"}
    for one, source in ((bad, "bad id"), (empty, "")):
        assert one["sourceId"] == source
        assert one["errorDetails"]["code"] == "ErrorInvalidIdMalformed"
        assert "targetId" not in one


@each_row(
    "change, status, code",
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
