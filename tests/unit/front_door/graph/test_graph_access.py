"""Tokens, access to mailboxes, readiness, and unknown paths."""

from tests.support.graph_fakes import WatchedGraph, refused
from tests.support.tables import each_row


@each_row("header", ["", "Bearer", "Bearer ", "Basic YWxpY2U6YWxpY2U=", "Bearer mallory", "alice"])
async def test_a_request_without_a_known_token_is_401(graph: WatchedGraph, header: str) -> None:
    headers = {"authorization": header}
    answer = await graph.http.post("/v1.0/me/sendMail", json={}, headers=headers)
    assert refused(answer, 401, "InvalidAuthenticationToken")
    assert answer.headers["www-authenticate"] == 'Bearer realm="relay.example.test"'
    assert "mallory" not in answer.text


async def test_not_ready(graph: WatchedGraph) -> None:
    graph.not_ready = "starting"
    answer = await graph.http.get("/v1.0/me")
    assert refused(answer, 503, "ResourceUnhealthy") == "The relay is not ready: starting."
    assert answer.headers["retry-after"] == "5"


@each_row("given, echoed", [("my-id-1", True), ("x" * 129, False), ("a b", False), ("", False)])
async def test_client_request_id(graph: WatchedGraph, given: str, echoed: bool) -> None:
    answer = await graph.http.get("/v1.0/me", headers={"client-request-id": given})
    expected = given if echoed else answer.headers["request-id"]
    assert answer.headers["client-request-id"] == expected
    assert answer.headers["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
