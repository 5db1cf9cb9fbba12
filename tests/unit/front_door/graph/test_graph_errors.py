"""What Graph says to each mistake: status, code and the beginning of the message are its own, and
what was found is the detail. A sentence of Graph is here as programs compare it.
"""

from typing import Any

import httpx

from tests.support.graph_fakes import OnDisk, refused, to

GRAPHS_ID = "AAMkADU3ZDY3YTBkLTcyYzUtNDg4Zi1iZjM4LTRhMjhjYzA0NzA1ZgBGAAAAAAA="
NOT_FOUND = "The specified object was not found in the store."
NOT_READ = f"{NOT_FOUND}, The process failed to get the correct properties."
SEND_AS = (
    "The user account which was used to submit this request does not have the right to send mail on behalf of "
    "the specified sending account., Cannot submit message."
)
UNRESOLVED = "is not resolved. All recipients must be resolved before a message can be submitted."
NOT_ITS = "request payload is not a valid parameter for the operation"
MISSING = "are missing from the request payload. The missing parameters are:"
ZONE = "A valid TimeZone value must be specified. The following TimeZone value is not supported:"
TYPES = "Invalid filter clause: A binary operator with incompatible types was detected. Found operand types"
INVALID = "At least one recipient is not valid., "
UNKNOWN = "Could not find a property named 'foo' on type 'microsoft.graph.message'."
MANY = [{"id": str(number), "method": "GET", "url": "/me"} for number in range(21)]
AS_BOB = {"subject": "x", "from": to("bob@example.test")[0], "toRecipients": to("bob@example.test")}
# the request, its body, then status, code, the beginning of the message, and a part of the detail
ROWS: tuple[tuple[str, Any, int, str, str, str], ...] = (
    (f"GET /messages/{GRAPHS_ID}", None, 404, "ErrorItemNotFound", NOT_READ, GRAPHS_ID),
    ("GET /messages/06h1d6y941z8zt0z", None, 404, "ErrorItemNotFound", NOT_READ, "no message"),
    (f"DELETE /messages/{GRAPHS_ID}", None, 404, "ErrorItemNotFound", NOT_FOUND, "no message"),
    ("GET /messages/x", None, 400, "ErrorInvalidIdMalformed", "Id is malformed.", "'x'"),
    (
        "GET /messages/{draft}/attachments/zzz",
        None,
        400,
        "ErrorInvalidIdMalformed",
        "Id is malformed.",
        "'zzz'",
    ),
    (
        "GET /mailFolders/nosuch/messages",
        None,
        400,
        "ErrorInvalidIdMalformed",
        "Id is malformed.",
        "'nosuch'",
    ),
    ("GET /foo", None, 400, "BadRequest", "Resource not found for the segment 'foo'.", "'foo'"),
    (
        "GET /messages/{draft}/foo",
        None,
        400,
        "RequestBroker--ParseUri",
        "Resource not found for the segment 'foo'.",
        "foo'",
    ),
    (
        "POST /mailFolders",
        {"displayName": "Archive"},
        409,
        "ErrorFolderExists",
        "A folder with the specified name already exists.",
        "'Archive'",
    ),
    (
        "DELETE /mailFolders/inbox",
        None,
        403,
        "ErrorDeleteDistinguishedFolder",
        "Distinguished folders cannot be deleted.",
        "'Inbox'",
    ),
    ("POST /sendMail", {"message": AS_BOB}, 403, "ErrorSendAsDenied", SEND_AS, "message.from: "),
    (
        "POST /sendMail",
        {"message": {}},
        400,
        "ErrorInvalidRecipients",
        f"{INVALID}A message can't be sent because it contains no recipients.",
        "are empty",
    ),
    (
        "POST /sendMail",
        {"message": {"toRecipients": to("x")}},
        400,
        "ErrorInvalidRecipients",
        f"{INVALID}Recipient 'x' {UNRESOLVED}",
        "message.toRecipients[0].emailAddress.address",
    ),
    (
        "POST /sendMail",
        None,
        400,
        "UnableToDeserializePostBody",
        "were unable to deserialize",
        "is empty",
    ),
    (
        "POST /sendMail",
        {"saveToSentItem": True},
        400,
        "RequestBodyRead",
        f"The parameter 'saveToSentItem' in the {NOT_ITS} 'sendMail'.",
        "savetosentitems",
    ),
    (
        "POST /messages/{draft}/move",
        {},
        400,
        "RequestBodyRead",
        f"One or more parameters of the operation 'move' {MISSING} DestinationId.",
        "destinationId",
    ),
    (
        "GET /messages?$select=foo",
        None,
        400,
        "BadRequest",
        f"Parsing OData Select and Expand failed: {UNKNOWN}",
        "'foo'",
    ),
    ("GET /messages?$filter=foo eq 1", None, 400, "BadRequest", UNKNOWN, "position 0"),
    ("GET /messages?$orderby=foo", None, 400, "BadRequest", UNKNOWN, "$orderby"),
    (
        "GET /mailFolders?$select=foo",
        None,
        400,
        "BadRequest",
        "Parsing OData Select and Expand failed: Could not find a property named 'foo' on type 'microsoft.graph.mailFolder'.",
        "'foo'",
    ),
    (
        "GET /messages?$filter=subject eq",
        None,
        400,
        "BadRequest",
        "Invalid filter clause: Syntax error at position 10 in 'subject eq'.",
        "found the end",
    ),
    (
        "GET /messages?$filter=subject eq 1",
        None,
        400,
        "BadRequest",
        f"{TYPES} 'Edm.String' and 'Edm.Int32' for operator kind 'Equal'.",
        "single quotes",
    ),
    (
        "GET /messages?$filter=receivedDateTime ge '2026-01-01'",
        None,
        400,
        "BadRequest",
        f"{TYPES} 'Edm.DateTimeOffset' and 'Edm.String' for operator kind 'GreaterThanOrEqual'.",
        "without quotes",
    ),
    (
        "GET /messages?$top=1001",
        None,
        400,
        "BadRequest",
        "The limit of '1000' for Top query has been exceeded. The value from the incoming request is '1001'.",
        "1 to 1000",
    ),
    (
        "GET /messages?$top=-1",
        None,
        400,
        "BadRequest",
        "Invalid value '-1' for $top query option found. The $top query option requires a non-negative integer value.",
        "1 to 1000",
    ),
    ("GET /messages?$search=a b:", None, 400, "BadRequest", "Syntax error: ", ""),
    (
        "PATCH /messages/{received}",
        {"subject": "y"},
        400,
        "ErrorInvalidPropertySet",
        "Message is not draft.",
        "subject",
    ),
    (
        "PATCH /messages/{draft}",
        {"importance": "urgent"},
        400,
        "RequestBodyRead",
        "Requested value 'urgent' was not found.",
        "importance: ",
    ),
    (
        "PATCH /messages/{draft}",
        {"isRead": "yes"},
        400,
        "RequestBodyRead",
        "Cannot convert the literal 'yes' to the expected type 'Edm.Boolean'.",
        "isRead: ",
    ),
    (
        "POST /messages/{draft}/attachments",
        {"@odata.type": "#microsoft.graph.fileAttachment"},
        400,
        "ErrorRequiredPropertyMissing",
        "Required property is missing.",
        "attachment.name",
    ),
    (
        "POST /../$batch",
        {"requests": MANY},
        400,
        "MaximumValueExceeded",
        "Number of batch request steps exceeds the maximum value of 20.",
        "found 21",
    ),
    (
        "POST /outlook/masterCategories",
        {"displayName": "dup"},
        409,
        "CategoryNameDuplicate",
        "The category name 'dup' is already in use",
        "displayName",
    ),
    (
        "PATCH /mailboxSettings",
        {"timeZone": "Foo"},
        400,
        "TimeZoneNotSupportedException",
        f"{ZONE} 'Foo'.",
        "Europe/Berlin",
    ),
)


async def test_each_mistake_has_graphs_words(on_disk: OnDisk) -> None:
    ids = {"draft": (await on_disk.http.post("/messages", json={"subject": "d"})).json()["id"]}
    received = on_disk.root / "example.test/alice/cur/1.x:2,"
    received.write_bytes(b"Subject: s\n\ntext\n")
    [found] = (await on_disk.http.get("/mailFolders/inbox/messages")).json()["value"]
    ids["received"] = found["id"]
    await on_disk.http.post("/outlook/masterCategories", json={"displayName": "Dup"})
    for profile in ("odata.none", "relay.strict"):
        for request, body, status, code, message, detail in ROWS:
            method, _, path = request.format(**ids).partition(" ")
            url = httpx.URL(
                f"http://h/v1.0{path[3:]}" if path[:4] == "/../" else f"http://h/v1.0/me{path}"
            )
            answer = await on_disk.http.request(method, url, json=body, headers={"prefer": profile})
            told = refused(answer, status, code)
            assert answer.json()["error"]["message"].startswith(message), (request, told)
            assert detail in answer.json()["error"]["innerError"].get("detail", ""), request
