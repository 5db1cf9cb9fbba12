"""translateExchangeIds: each id is translated to itself."""

from tests.support.graph_fakes import WatchedGraph, refused, to

PATH = "/v1.0/me/translateExchangeIds"
TYPES = {"sourceIdType": "restId", "targetIdType": "restImmutableEntryId"}


async def test_ids_are_returned_unchanged_and_name_the_same_items(graph: WatchedGraph) -> None:
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


async def test_a_malformed_id_has_its_own_error(graph: WatchedGraph) -> None:
    body = {"inputIds": ["INBOX", "bad id", ""], **TYPES}
    good, bad, empty = (await graph.http.post(PATH, json=body)).json()["value"]
    assert good == {"sourceId": "INBOX", "targetId": "INBOX"}
    for one, source in ((bad, "bad id"), (empty, "")):
        assert one["sourceId"] == source
        assert one["errorDetails"]["code"] == "ErrorInvalidIdMalformed"
        assert "targetId" not in one


async def test_ids_of_other_programs_are_a_501(graph: WatchedGraph) -> None:
    for change in (
        {"sourceIdType": "entryId"},
        {"targetIdType": "ewsId"},
        {"targetIdType": "immutableEntryId"},
    ):
        body = {"inputIds": ["a"], **TYPES, **change}
        refused(await graph.http.post(PATH, json=body), 501, "NotImplemented")
