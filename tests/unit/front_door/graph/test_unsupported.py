"""What Graph has and Relay has not is a 501; what neither has is a 404, or a 405 with Allow."""

from tests.support.graph_fakes import AS_ALICE, GraphInMemory, refused
from tests.support.tables import each_row

NOT_IMPLEMENTED = (
    *(
        "PATCH /me",
        "DELETE /users/alice@example.test",
        "GET /me/photo/$value",
        "PUT /me/photo/$value",
    ),
    *("GET /me/manager", "GET /me/memberOf", "GET /me/directReports", "GET /me/people"),
    *("POST /me/getMemberGroups", "POST /me/microsoft.graph.checkMemberGroups"),
    *("GET /me/transitiveMemberOf/microsoft.graph.group", "POST /me/revokeSignInSessions"),
    *("GET /me/events", "POST /me/events", "PATCH /me/events/1", "DELETE /me/calendars/1"),
    *("GET /me/calendarView", "GET /me/calendarGroups", "POST /me/calendar/getSchedule"),
    *("POST /me/findMeetingTimes", "GET /me/findRooms()", "GET /me/contacts", "POST /me/contacts"),
    *("GET /me/contactFolders/delta", "GET /me/todo/lists", "POST /me/todo/lists/1/tasks"),
    *("GET /me/onenote/notebooks", "GET /me/drive/root/children", "PUT /me/drive/items/1/content"),
    *("GET /me/planner/tasks", "GET /me/joinedTeams", "GET /me/presence", "GET /me/chats"),
    *("GET /me/outlook", "GET /me/outlook/masterCategories/$count", "GET /me/extensions"),
    *("GET /me/outlook/supportedLanguages()", "GET /me/inferenceClassification"),
    *("PATCH /me/inferenceClassification", "DELETE /me/inferenceClassification/overrides/1"),
    *("GET /me/inferenceClassification/overrides/$count", "GET /me/insights/used"),
    *("POST /me/mailFolders/inbox/messageRules", "GET /me/mailFolders/inbox/messageRules/$count"),
    *("PATCH /me/mailFolders/inbox/messageRules/1", "GET /me/mailFolders/x/childFolders/delta"),
    "GET /me/mailFolders/x/childFolders/y/childFolders/delta()",
    *("DELETE /me/messages/1/$value", "DELETE /me/mailFolders/inbox/messages/1/$value"),
    *("GET /me/messages/1/extensions", "POST /me/mailFolders/inbox/messages/1/extensions"),
    *("POST /me/messages/1/markAsJunk", "POST /me/messages/1/unsubscribe"),
    *("POST /me/getMailTips", "GET /me/reminderView(StartDateTime='1',EndDateTime='2')"),
    *("GET /me/settings", "PATCH /users('alice%40example.test')/settings/storage"),
    *("POST /users", "GET /users/$count", "GET /users/delta", "GET /users/delta()"),
    *("POST /users/getByIds", "POST /users/validateProperties"),
    *("POST /search/query", "GET /groups", "GET /groups/1/members", "POST /groups/1/conversations"),
    *("GET /sites/root", "GET /teams/1/channels", "GET /directoryObjects/1", "GET /$metadata"),
    *("POST /directoryObjects/getByIds", "GET /organization", "GET /domains", "GET /contacts"),
    *("GET /applications(appId='1')", "GET /reports/getMailboxUsageDetail(period='D7')"),
    *("GET /deviceManagement", "GET /drives/1", "GET /", "GET /places/microsoft.graph.room"),
)
WRONG_METHOD = (
    *("POST /me", "PUT /me", "DELETE /users", "PATCH /subscriptions", "DELETE /me/messages"),
    *(
        "PUT /me/messages/1",
        "POST /me/messages/1",
        "GET /me/sendMail",
        "POST /me/messages/1/$value",
    ),
    *(
        "PATCH /me/messages/1/attachments/1",
        "GET /me/messages/1/move",
        "DELETE /me/mailboxSettings",
    ),
    *("PATCH /me/inferenceClassification/overrides", "PUT /me/mailFolders/inbox/messageRules"),
    *(
        "PATCH /me/messages/delta",
        "POST /me/outlook/supportedTimeZones",
        "PATCH /me/messages/$count",
    ),
)
UNKNOWN = (
    *("GET /me/colour", "POST /me/sendMails", "GET /colour", "GET /messages", "POST /sendMail"),
    *("GET /me/messages/1/colour", "POST /me/messages/1/sent", "GET /me/mailFolders/inbox/rules"),
    *("GET /me/messages/1/attachments/1/item", "GET /calendar", "GET /me/groups", "GET /me/users"),
    *("POST /me/mailFolders/x/childFolders/delta", "GET /me/messages/$colour", "GET /mailFolders"),
)
TABLE = (
    *((one, 501, "NotImplemented") for one in NOT_IMPLEMENTED),
    *((one, 405, "Request_BadRequest") for one in WRONG_METHOD),
    *((one, 404, "ResourceNotFound") for one in UNKNOWN),
)


@each_row("version", ["v1.0", "beta"])
async def test_status_of_what_relay_has_not(graph: GraphInMemory, version: str) -> None:
    for request, status, code in TABLE:
        method, path = request.split(" ")
        answer = await graph.http.request(method, f"/{version}{path}")
        assert (request, answer.status_code) == (request, status)
        message = refused(answer, status, code)
        assert (status == 501) == message.endswith(" is not implemented.")
        assert (status == 405) == ("allow" in answer.headers)


async def test_a_501_needs_a_token_and_a_mailbox_that_may_be_opened(graph: GraphInMemory) -> None:
    unsigned = await graph.http.get("/v1.0/groups", headers={"authorization": "Bearer nobody x"})
    assert unsigned.status_code == 401
    others = await graph.http.get("/v1.0/users/bob@example.test/calendar", headers=AS_ALICE)
    refused(others, 403, "ErrorAccessDenied")


async def test_a_user_by_its_alternate_key(graph: GraphInMemory) -> None:
    for key in ("'alice@example.test'", "userPrincipalName='alice@example.test'"):
        found = await graph.http.get(f"/v1.0/users({key})")
        assert found.json()["mail"] == "alice@example.test"
