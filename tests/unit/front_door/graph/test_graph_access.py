"""Tokens, access to mailboxes, readiness, and unknown paths."""

from tests.support.graph_fakes import GraphInMemory, refused
from tests.support.tables import each_row


@each_row("header", ["", "Bearer", "Bearer ", "Basic YWxpY2U6YWxpY2U=", "Bearer mallory", "alice"])
async def test_a_request_without_a_known_token_is_401(graph: GraphInMemory, header: str) -> None:
    headers = {"authorization": header}
    answer = await graph.http.post("/v1.0/me/sendMail", json={}, headers=headers)
    assert refused(answer, 401, "InvalidAuthenticationToken")
    assert answer.headers["www-authenticate"] == 'Bearer realm="relay.example.test"'
    assert "mallory" not in answer.text


@each_row(
    "path, status, code",
    [
        ("/v1.0/users/bob@example.test/messages", 403, "ErrorAccessDenied"),
        ("/v1.0/users/nobody@example.test/messages", 403, "ErrorAccessDenied"),
        ("/v1.0/messages", 404, "ResourceNotFound"),
        ("/v1.0/me/nonsense", 404, "ResourceNotFound"),
        ("/v1.0/me/messages/x/nonsense", 404, "ResourceNotFound"),
        ("/v1.0/me/messages/a%20b", 400, "ErrorInvalidIdMalformed"),
        ("/v1.0/me/messages/%2e%2e%2f", 400, "ErrorInvalidIdMalformed"),
        ("/v1.0/me/messages/%ff", 400, "BadRequest"),
        ("/v1.0/me/messages/unknown", 404, "ErrorItemNotFound"),
        ("/v1.0/me/mailFolders/unknown/messages", 404, "ErrorItemNotFound"),
        ("/v1.0/me/sendMail", 405, "Request_BadRequest"),
    ],
)
async def test_what_is_not_there(graph: GraphInMemory, path: str, status: int, code: str) -> None:
    assert refused(await graph.http.get(path), status, code)


@each_row(
    "path, what",
    [
        ("messages/x/extensions/y", "The resource openTypeExtension"),
        ("mailFolders/x/childFolders/y/childFolders/delta", "A delta query of child folders"),
        ("mailFolders/inbox/messageRules/1", "The resource messageRule"),
        ("calendar/events", "The resource calendar"),
        ("contacts", "The resource contacts"),
    ],
)
async def test_a_resource_that_is_not_implemented_is_501(
    graph: GraphInMemory, path: str, what: str
) -> None:
    url = f"/v1.0/me/{path}".replace("/me/..", "")
    message = refused(await graph.http.get(url), 501, "NotImplemented")
    assert message == f"{what} is not implemented."


async def test_not_ready(graph: GraphInMemory) -> None:
    graph.not_ready = "The spool is being opened."
    answer = await graph.http.get("/v1.0/me")
    assert refused(answer, 503, "ResourceUnhealthy") == "The spool is being opened."
    assert answer.headers["retry-after"] == "5"


@each_row("given, echoed", [("my-id-1", True), ("x" * 129, False), ("a b", False), ("", False)])
async def test_client_request_id(graph: GraphInMemory, given: str, echoed: bool) -> None:
    answer = await graph.http.get("/v1.0/me", headers={"client-request-id": given})
    expected = given if echoed else answer.headers["request-id"]
    assert answer.headers["client-request-id"] == expected
    assert answer.headers["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
