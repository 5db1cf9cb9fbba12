"""What neither Graph nor Relay has is a 404; what only Graph has needs a token, too."""

import pytest

from tests.support.graph_fakes import AS_ALICE, WatchedGraph, refused

UNKNOWN = (
    *("GET /me/colour", "POST /me/sendMails", "GET /colour", "GET /messages", "POST /sendMail"),
    *("GET /me/messages/1/colour", "POST /me/messages/1/sent", "GET /me/mailFolders/inbox/rules"),
    *("GET /me/messages/1/attachments/1/item", "GET /calendar", "GET /me/groups", "GET /me/users"),
    *("POST /me/mailFolders/x/childFolders/delta", "GET /me/messages/$colour", "GET /mailFolders"),
)


@pytest.mark.parametrize("version", ["v1.0", "beta"])
async def test_what_neither_has_is_not_found(graph: WatchedGraph, version: str) -> None:
    for request in UNKNOWN:
        method, path = request.split(" ")
        answer = await graph.http.request(method, f"/{version}{path}")
        assert (answer.status_code, "found for the segment '" in answer.text) == (400, True)


async def test_octets_of_a_path_that_are_no_text(graph: WatchedGraph) -> None:
    refused(await graph.http.get("/v1.0/me/messages/%ff"), 400, "BadRequest")


async def test_a_501_needs_a_token_and_a_mailbox_that_may_be_opened(graph: WatchedGraph) -> None:
    unsigned = await graph.http.get("/v1.0/groups", headers={"authorization": "Bearer nobody x"})
    assert unsigned.status_code == 401
    others = await graph.http.get("/v1.0/users/bob@example.test/calendar", headers=AS_ALICE)
    refused(others, 403, "ErrorAccessDenied")


async def test_a_user_by_its_alternate_key(graph: WatchedGraph) -> None:
    for key in ("'alice@example.test'", "userPrincipalName='alice@example.test'"):
        found = await graph.http.get(f"/v1.0/users({key})")
        assert found.json()["mail"] == "alice@example.test"
