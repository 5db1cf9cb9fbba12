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
SELECT = "Parsing OData Select and Expand failed: "
FILTER = "Invalid filter clause: "
# by status and code: the request, its body, the beginning of the message, and a part of the detail
Row = tuple[str, Any, str, str]
REFUSALS: dict[tuple[int, str], list[Row]] = {
    (404, "ErrorItemNotFound"): [
        (f"GET /messages/{GRAPHS_ID}", None, NOT_READ, GRAPHS_ID),
        ("GET /messages/06h1d6y941z8zt0z", None, NOT_READ, "no message"),
        (f"DELETE /messages/{GRAPHS_ID}", None, NOT_FOUND, "no message"),
    ],
    (400, "ErrorInvalidIdMalformed"): [
        ("GET /messages/x", None, "Id is malformed.", "'x'"),
        ("GET /messages/{draft}/attachments/zzz", None, "Id is malformed.", "'zzz'"),
        ("GET /mailFolders/nosuch/messages", None, "Id is malformed.", "'nosuch'"),
    ],
    (400, "BadRequest"): [
        ("GET /foo", None, "Resource not found for the segment 'foo'.", "'foo'"),
        ("GET /messages?$select=foo", None, SELECT + UNKNOWN, "'foo'"),
        ("GET /messages?$filter=foo eq 1", None, UNKNOWN, "position 0"),
        ("GET /messages?$orderby=foo", None, UNKNOWN, "$orderby"),
        (
            "GET /messages?$filter=subject eq",
            None,
            FILTER + "Syntax error at position 10 in 'subject eq'.",
            "found the end",
        ),
        (
            "GET /messages?$filter=subject eq 1",
            None,
            f"{TYPES} 'Edm.String' and 'Edm.Int32' for operator kind 'Equal'.",
            "single quotes",
        ),
        (
            "GET /messages?$filter=receivedDateTime ge '2026-01-01'",
            None,
            f"{TYPES} 'Edm.DateTimeOffset' and 'Edm.String' for operator kind 'GreaterThanOrEqual'.",
            "without quotes",
        ),
        (
            "GET /messages?$top=1001",
            None,
            "The limit of '1000' for Top query has been exceeded. The value from the incoming request is '1001'.",
            "1 to 1000",
        ),
        ("GET /messages?$top=0", None, "$top: found '0', expected 1 or more.", ""),
        ("GET /messages?$search=a b:c", None, "Syntax error: ", ""),
    ],
    (400, "RequestBroker--ParseUri"): [
        ("GET /messages/{draft}/foo", None, "Resource not found for the segment 'foo'.", "foo'")
    ],
    (409, "ErrorFolderExists"): [
        (
            "POST /mailFolders",
            {"displayName": "Archive"},
            "A folder with the specified name already exists.",
            "'Archive'",
        )
    ],
    (403, "ErrorDeleteDistinguishedFolder"): [
        ("DELETE /mailFolders/inbox", None, "Distinguished folders cannot be deleted.", "'Inbox'")
    ],
    (403, "ErrorSendAsDenied"): [
        ("POST /sendMail", {"message": AS_BOB}, SEND_AS, "message.from: ")
    ],
    (400, "ErrorInvalidRecipients"): [
        (
            "POST /sendMail",
            {"message": {}},
            f"{INVALID}A message can't be sent because it contains no recipients.",
            "are empty",
        ),
        (
            "POST /sendMail",
            {"message": {"toRecipients": to("x")}},
            f"{INVALID}Recipient 'x' {UNRESOLVED}",
            "message.toRecipients[0].emailAddress.address",
        ),
    ],
    (400, "UnableToDeserializePostBody"): [
        ("POST /sendMail", None, "were unable to deserialize", "is empty")
    ],
    (400, "RequestBodyRead"): [
        (
            "POST /sendMail",
            {"saveToSentItem": True},
            f"The parameter 'saveToSentItem' in the {NOT_ITS} 'sendMail'.",
            "savetosentitems",
        ),
        (
            "POST /messages/{draft}/move",
            {},
            f"One or more parameters of the operation 'move' {MISSING} DestinationId.",
            "destinationId",
        ),
        (
            "PATCH /messages/{draft}",
            {"importance": "urgent"},
            "Requested value 'urgent' was not found.",
            "importance: ",
        ),
        (
            "PATCH /messages/{draft}",
            {"isRead": "yes"},
            "Cannot convert the literal 'yes' to the expected type 'Edm.Boolean'.",
            "isRead: ",
        ),
    ],
    (400, "ErrorInvalidPropertySet"): [
        ("PATCH /messages/{received}", {"subject": "y"}, "Message is not draft.", "subject")
    ],
    (400, "ErrorRequiredPropertyMissing"): [
        (
            "POST /messages/{draft}/attachments",
            {"@odata.type": "#microsoft.graph.fileAttachment"},
            "Required property is missing.",
            "attachment.name",
        )
    ],
    (400, "MaximumValueExceeded"): [
        (
            "POST /../$batch",
            {"requests": MANY},
            "Number of batch request steps exceeds the maximum value of 20.",
            "found 21",
        )
    ],
    (400, "TimeZoneNotSupportedException"): [
        ("PATCH /mailboxSettings", {"timeZone": "Foo"}, f"{ZONE} 'Foo'.", "Europe/Berlin")
    ],
}

ROWS = [(*refusal, *row) for refusal, rows in REFUSALS.items() for row in rows]


async def test_each_mistake_has_graphs_words(on_disk: OnDisk) -> None:
    ids = {"draft": (await on_disk.http.post("/messages", json={"subject": "d"})).json()["id"]}
    received = on_disk.root / "example.test/alice/cur/1.x:2,"
    received.write_bytes(b"Subject: s\n\ntext\n")
    [found] = (await on_disk.http.get("/mailFolders/inbox/messages")).json()["value"]
    ids["received"] = found["id"]
    for profile in ("odata.none", "relay.strict"):
        for status, code, request, body, message, detail in ROWS:
            method, _, path = request.format(**ids).partition(" ")
            url = httpx.URL(
                f"http://h/v1.0{path[3:]}" if path[:4] == "/../" else f"http://h/v1.0/me{path}"
            )
            answer = await on_disk.http.request(method, url, json=body, headers={"prefer": profile})
            told = refused(answer, status, code)
            assert answer.json()["error"]["message"].startswith(message), (request, told)
            assert detail in answer.json()["error"]["innerError"].get("detail", ""), request
