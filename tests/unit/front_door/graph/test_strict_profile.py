"""The profile strict: each refusal of Graph, with its status, code and text; relaxed takes it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.front_door.graph.strict_profile import check_body
from relay.front_door.http.errors import ApiError
from tests.support.graph_fakes import AS_ALICE, OnDisk, graph_on_disk, refused, to

MIB = 1 << 20
AS_STRICT = {"prefer": "relay.strict"}
FILE = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "a.txt", "contentBytes": "eA=="}
UNTYPED = {"name": "a.txt", "contentBytes": "eA=="}
ATTACHED = {"@odata.type": "#microsoft.graph.itemAttachment", "name": "i"}
TOO_COMPLEX = (
    400,
    "InefficientFilter",
    "The restriction or sort order is too complex for this operation.",
)
TOO_LARGE = (413, "BadRequest", "The maximum request length supported is 4MB.")
TOO_SMALL = (
    400,
    "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize",
    "Attachment size must be greater than the minimum size.",
)
HEADERS = (
    400,
    "InvalidInternetMessageHeaderCollection",
    "Maximum number of headers in one message should be less than or equal to 5.",
)
ABSTRACT = (
    422,
    "UnprocessableType",
    "Cannot process input of abstract type 'microsoft.graph.attachment'.",
)
ONLY_FILES = (
    405,
    "ErrorAttachmentSessionIsSupportedOnlyForFileAttachments",
    "Unsupported Attachment type specified. Only File attachments can be uploaded using an Upload Session.",
)
UNIQUE = 400, "BadRequest", "Request Id A has to be unique in a batch."
DEPENDENCY = 400, "BadRequest", "Invalid dependency for request Id 1"
NO_TYPE = (400, "BadRequest", "Write request with id '1' does not contain a Content-Type header.")
MIME = base64.b64encode(b"To: bob@example.test\r\n\r\n" + b"x" * 72 * 45_000)


def unknown(name: str, kind: str) -> tuple[int, str, str]:
    text = f"The property '{name}' does not exist on type 'microsoft.graph.{kind}'. Make sure to only use property names that are defined by the type or mark the type as open type."
    return 400, "RequestBodyRead", text


READ_ONLY = 400, "ErrorInvalidPropertySet", "Set action is invalid for property."


def unselectable(name: str) -> tuple[int, str, str]:
    text = f"Parsing OData Select and Expand failed: Could not find a property named '{name}' on type 'microsoft.graph.attachment'."
    return 400, "BadRequest", text


NO_WELL_KNOWN = (
    *(400, "BadRequest"),
    "Parsing OData Select and Expand failed: Could not find a property named 'wellKnownName' on type 'microsoft.graph.mailFolder'.",
)


def searched(option: str) -> tuple[int, str, str]:
    text = f"The query parameter '${option}' is not supported with '$search'."
    return 400, f"SearchWith{option[0].upper()}{option[1:]}", text


def sent(**message: object) -> dict[str, Any]:
    return {"json": {"message": {"toRecipients": to("bob@example.test"), **message}}}


def upload(size: int, kind: str = "file") -> dict[str, Any]:
    return {"json": {"AttachmentItem": {"attachmentType": kind, "name": "item", "size": size}}}


def headers(count: int) -> list[dict[str, str]]:
    return [{"name": f"x-{number}", "value": "v"} for number in range(count)]


def part(fields: dict[str, str] | None = None) -> dict[str, Any]:
    one = {"id": "1", "method": "POST", "url": "/me/messages", "body": {"subject": "s"}}
    return {"json": {"requests": [one if fields is None else one | {"headers": fields}]}}


def reads(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"json": {"requests": [{"method": "GET", "url": "/me"} | part for part in parts]}}


Refused = tuple[str, dict[str, Any], tuple[int, str, str], int]


def read(path: str, refusal: tuple[int, str, str]) -> Refused:
    return f"GET {path}", {}, refusal, 200


def unquoted(path: str, words: str, at: int) -> Refused:
    text = f"Syntax error: character '{words[at]}' is not valid at position {at} in '{words}'."
    return read(f"{path}?$search={words}", (400, "BadRequest", text))


def posted(path: str, body: Any, refusal: tuple[int, str, str]) -> Refused:
    return f"POST {path}", {"json": body}, refusal, 201


def mailed(refusal: tuple[int, str, str], **message: Any) -> Refused:
    return "POST /sendMail", sent(**message), refusal, 202


def changed(path: str, body: Any, refusal: tuple[int, str, str]) -> Refused:
    return f"PATCH {path}", {"json": body}, refusal, 200


ATTACH, DRAFT = "/messages/{draft}/attachments", "/messages/{draft}"
BY_READ = "/messages?$filter=isRead eq true"
BY_CATEGORY = "/mailFolders/drafts/messages?$filter=categories/any(c:c eq 'x')"
PLAIN_MIME = {"content": MIME, "headers": {"content-type": "text/plain"}}
TYPED = {"address": "a@b.test", "mail": ""}

# what is asked, what Graph answers, and the status without the profile
REFUSED: dict[str, Refused] = {
    "order in a folder": read(f"{BY_CATEGORY}&$orderby=receivedDateTime desc", TOO_COMPLEX),
    **{
        f"order by another than {named}": read(
            f"/messages?$filter={named}&$orderby=receivedDateTime", TOO_COMPLEX
        )
        for named in (
            "isRead eq true and (subject eq 's' or from/emailAddress/address eq 'a')",
            "from/emailAddress/name eq 'a' and receivedDateTime ge 2020-01-01",
            "inferenceClassification eq 'focused'",
            "not (flag/flagStatus eq 'flagged')",
            "Importance eq 'high'",
            "contains(subject,'s')",
            "contains(from/emailAddress/address,'a')",
            "toRecipients/any(r:r/emailAddress/address eq 'a')",
            "conversationId eq 'a'",
        )
    },
    "search and filter": read(f'{BY_READ}&$search="a"', searched("filter")),
    "search and order": read('/messages?search="a"&orderby=subject', searched("orderBy")),
    "count": read('/messages/$count?$search="a"&$filter=isRead eq true', searched("filter")),
    "a digit": unquoted("/messages", "Backup Config 0", 14),
    "a colon": unquoted("/messages/$count", 'subject:"new wine"', 7),
    "after a phrase": unquoted("/mailFolders/drafts/messages", '("a b" OR c) from=d', 17),
    "a quote in a word": unquoted("/messages", 'a"b"', 1),
    "JSON": mailed(TOO_LARGE, body={"content": "x" * 4 * MIB}),
    "MIME": ("POST /sendMail", PLAIN_MIME, TOO_LARGE, 202),
    "small upload": (f"POST {ATTACH}/createUploadSession", upload(2_999_999), TOO_SMALL, 201),
    "item": (f"POST {ATTACH}/createUploadSession", upload(3_000_000, "Item"), ONLY_FILES, 501),
    "no headers": posted("/messages", {"internetMessageHeaders": []}, HEADERS),
    "six headers": mailed(HEADERS, internetMessageHeaders=headers(6)),
    "headers of a reply": posted(
        f"{DRAFT}/createReply", {"message": {"internetMessageHeaders": headers(6)}}, HEADERS
    ),
    "attachment in a message": mailed(unknown("contentBytes", "attachment"), attachments=[UNTYPED]),
    "attachment": posted(ATTACH, UNTYPED, ABSTRACT),
    "select of a list": read(f"{ATTACH}?$select=id,contentId", unselectable("contentId")),
    "select of one": read(f"{ATTACH}/{{file}}?$select=contentBytes", unselectable("contentBytes")),
    "select in $expand": read(
        f"{DRAFT}?$expand=attachments($select=name, contentId)", unselectable("contentId")
    ),
    "select in a list's $expand": read(
        "/messages?$expand=attachments($select=contentId)", unselectable("contentId")
    ),
    **{
        f"beta in {path}": read(path, NO_WELL_KNOWN)
        for path in (
            "/mailFolders?$select=displayName,wellKnownName",
            "/mailFolders/inbox?$select=wellKnownName",
            "/mailFolders?$expand=childFolders($expand=childFolders($select=wellKnownName))",
        )
    },
    "part without headers": ("POST /../$batch", part(), NO_TYPE, 200),
    "part with others": ("POST /../$batch", part({"accept": "*/*"}), NO_TYPE, 200),
    "ids of a batch": ("POST /../$batch", reads({"id": "a"}, {"id": "A"}), UNIQUE, 200),
    "a later part": (
        "POST /../$batch",
        reads({"id": "1", "dependsOn": ["2"]}, {"id": "2"}),
        DEPENDENCY,
        200,
    ),
    "property": posted("/messages", {"subjects": "s"}, unknown("subjects", "message")),
    "property of a change": changed(DRAFT, {"colour": 1}, unknown("colour", "message")),
    **{
        name: changed(DRAFT, {name: None}, READ_ONLY)
        for name in ("parentFolderId", "isDraft", "hasAttachments", "receivedDateTime")
    },
    "body": posted("/messages", {"body": {"text": "s"}}, unknown("text", "itemBody")),
    "recipient": mailed(
        unknown("kind", "recipient"), ccRecipients=[to("a@b.test")[0] | {"kind": "cc"}]
    ),
    "address": mailed(unknown("mail", "emailAddress"), ccRecipients=[{"emailAddress": TYPED}]),
    "flag": changed(DRAFT, {"flag": {"colour": "red"}}, unknown("colour", "followupFlag")),
    "header": posted(
        "/messages",
        {"internetMessageHeaders": [headers(1)[0] | {"x": 1}]},
        unknown("x", "internetMessageHeader"),
    ),
    "of another kind": posted(ATTACH, FILE | {"item": {}}, unknown("item", "fileAttachment")),
    "property of an item": posted(
        "/messages",
        {"attachments": [ATTACHED | {"item": {"colour": 1}}]},
        unknown("colour", "message"),
    ),
    "language": changed(
        "/mailboxSettings", {"language": {"name": "x"}}, unknown("name", "localeInfo")
    ),
}
BY_TIME = (
    "receivedDateTime ge 2020-01-01 and receivedDateTime lt 2040-01-01 and importance eq 'high'"
)
PASCAL = {
    "@odata.type": "#microsoft.graph.message",
    "Subject": "s",
    "ToRecipients": to("bob@example.test"),
}
# what is not refused in either profile
TAKEN: dict[str, tuple[str, dict[str, Any], int]] = {
    **{
        name: (f"GET {path}", {}, 200)
        for name, path in {
            "the first ones": f"/messages?$filter={BY_TIME}&$orderby=ReceivedDateTime desc",
            "unread mail": f"{BY_READ}&$orderby=receivedDateTime desc",
            "a later one": f"{BY_READ} and parentFolderId eq 'inbox'&$orderby=subject,isRead",
            "a function": "/messages?$filter=startswith(subject,'s') or hasAttachments eq true"
            "&$orderby=receivedDateTime",
            "filter alone": "/messages?$filter="
            "not (isRead eq true or from/emailAddress/address eq 'a')",
            "order alone": "/messages?$orderby=subject",
            "search alone": '/messages?$search="a"&$top=5&$select=subject',
            "phrases and words": '/messages?$search=("a_1 %26 b" OR größe) NOT "1"',
            "a cast": f"{ATTACH}?$select=id,microsoft.graph.fileAttachment/contentId",
            "$expand": "/messages?$expand=attachments($select=id,name)",
        }.items()
    },
    "4 MiB": ("POST /messages", {"content": b'{"subject":"s"}'.ljust(4 * MIB)}, 201),
    "a large upload": (f"POST {ATTACH}/createUploadSession", upload(3_000_000), 201),
    "five headers": ("POST /sendMail", sent(internetMessageHeaders=headers(5)), 202),
    "headers that are null": ("POST /messages", {"json": {"internetMessageHeaders": None}}, 201),
    "a file": (f"POST {ATTACH}", {"json": FILE | {"contentId": "x"}}, 201),
    "a part with its type": ("POST /../$batch", part({"CONTENT-TYPE": "application/json"}), 200),
    "pascal case": ("POST /sendMail", {"json": {"Message": PASCAL}}, 202),
}


@asynccontextmanager
async def a_mailbox(root: Path, **http: Any) -> AsyncIterator[tuple[OnDisk, dict[str, str]]]:
    """A mailbox with a draft that has a file."""
    async with graph_on_disk(root / "mail", max_body=8 * MIB, **http) as made:
        draft = {"subject": "s", "toRecipients": to("bob@example.test"), "attachments": [FILE]}
        one = (await made.http.post("/messages", json=draft)).json()["id"]
        [file] = (await made.http.get(f"/messages/{one}/attachments")).json()["value"]
        yield made, {"draft": one, "file": file["id"]}


async def ask(made: OnDisk, target: str, ids: dict[str, str], options: Any) -> httpx.Response:
    method, _, path = target.partition(" ")
    url = f"/v1.0{path[3:]}" if path.startswith("/../") else f"/v1.0/me{path.format(**ids)}"
    options = {**options, "headers": AS_ALICE | options.get("headers", {})}
    return await made.http.request(method, f"http://h{url}", **options)


def preferring(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"headers": AS_STRICT | options.get("headers", {})}


async def test_strict_refuses_what_relaxed_takes(tmp_path: Path) -> None:
    async with a_mailbox(tmp_path / "strict", profile="strict") as (made, ids):
        before = {file: file.read_bytes() for file in made.files()}
        for name, (target, options, (status, code, text), _) in REFUSED.items():
            assert refused(await ask(made, target, ids, options), status, code).startswith(text), (
                name
            )
        assert {file: file.read_bytes() for file in made.files()} == before
    async with a_mailbox(tmp_path / "relaxed") as (made, ids):
        for name, (target, options, (status, code, text), relaxed) in REFUSED.items():
            answer = await ask(made, target, ids, preferring(options))
            assert refused(answer, status, code).startswith(text), name
            answer = await ask(made, target, ids, options)
            assert (name, answer.status_code) == (name, relaxed), answer.text


async def test_strict_shows_what_graph_shows(tmp_path: Path) -> None:
    async with a_mailbox(tmp_path, profile="strict") as (made, ids):
        found = await ask(made, 'GET /messages?$search="s"&$count=true', ids, {})
        assert len(found.json()["value"]) == 1
        assert "@odata.count" not in found.json()
        found = await ask(made, "GET /messages?$count=true", ids, {})
        assert found.json()["@odata.count"] == 1
        for options in ("$filter=isInline eq true", '$search="none"', "$filter=colour"):
            found = await ask(made, f"GET {ATTACH}?{options}", ids, {})
            assert [one["name"] for one in found.json()["value"]] == ["a.txt"]
        beta = "http://h/beta/me/mailFolders/inbox?$select=wellKnownName"
        assert (await made.http.get(beta)).json()["wellKnownName"] == "inbox"


async def test_strict_leaves_the_attachments_of_a_changed_draft(tmp_path: Path) -> None:
    other = {"subject": "t", "attachments": [FILE | {"name": "b.txt"}]}
    async with a_mailbox(tmp_path) as (made, ids):
        assert (await ask(made, f"PATCH {DRAFT}", ids, {"json": other})).status_code == 400
        changed = await ask(made, f"PATCH {DRAFT}", ids, preferring({"json": other}))
        assert (changed.status_code, changed.json()["subject"]) == (200, "t")
        [kept] = (await ask(made, f"GET {ATTACH}", ids, {})).json()["value"]
        assert (kept["id"], kept["name"]) == (ids["file"], "a.txt")


async def test_strict_sends_the_name_of_the_account(tmp_path: Path) -> None:
    author = {"EmailAddress": {"Name": "Sales", "Address": "alias@example.test"}}
    message = {"toRecipients": to("bob@example.test"), "From": author}
    requests = {"POST /messages": message, "POST /sendMail": {"message": message}}
    requests |= {f"POST {DRAFT}/createReply": {"message": message}, f"PATCH {DRAFT}": message}
    async with a_mailbox(tmp_path) as (made, ids):
        for headers, name in ((AS_STRICT, "alice"), ({}, "Sales")):
            for target, body in requests.items():
                answer = await ask(made, target, ids, {"json": body, "headers": headers})
                one = answer.headers.get("x-relay-message-id") or answer.json()["id"]
                mime = (await made.http.get(f"/messages/{one}/$value")).text
                assert f"From: {name} <alias@example.test>\r\n" in mime, (target, name)


async def test_strict_takes_what_graph_takes(tmp_path: Path) -> None:
    async with a_mailbox(tmp_path, profile="strict") as (made, ids):
        for name, (target, options, status) in TAKEN.items():
            answer = await ask(made, target, ids, preferring(options))
            assert (name, answer.status_code) == (name, status), answer.text
            if "$batch" in target:
                [one] = answer.json()["responses"]
                assert (one["status"], one["headers"]["Preference-Applied"]) == (
                    201,
                    "relay.strict",
                )
            else:
                assert answer.headers["preference-applied"] == "relay.strict"


async def test_relaxed_keeps_six_headers_and_drops_what_is_unknown(tmp_path: Path) -> None:
    async with a_mailbox(tmp_path) as (made, _):
        given = {"subject": "s", "colour": 1, "internetMessageHeaders": headers(6)}
        answer = (await made.http.post("/messages", json=given)).json()
        path = f"/messages/{answer['id']}?$select=internetMessageHeaders,subject"
        found = (await made.http.get(path)).json()
        assert (found["subject"], found["internetMessageHeaders"]) == ("s", headers(6))
        assert "colour" not in answer


async def test_a_value_of_the_preference_is_refused(tmp_path: Path) -> None:
    async with a_mailbox(tmp_path, profile="strict") as (made, ids):
        answer = await ask(
            made, "GET /messages", ids, {"headers": {"prefer": "relay.strict=false"}}
        )
        assert "relay.strict has no value" in refused(answer, 400, "ErrorInvalidRequest")


async def test_the_parts_of_a_strict_batch_are_strict(tmp_path: Path) -> None:
    typed = {"headers": {"Content-Type": "application/json", "Prefer": "return=minimal"}}
    one = {"id": "1", "method": "POST", "url": "/me/messages", "body": {"colour": 1}} | typed
    async with a_mailbox(tmp_path) as (made, ids):
        for options, status in (({}, 204), (AS_STRICT, 400)):
            given = {"json": {"requests": [one]}, "headers": options}
            [found] = (await ask(made, "POST /../$batch", ids, given)).json()["responses"]
            assert found["status"] == status


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
async def test_a_long_body_without_its_length_is_refused(tmp_path: Path, kind: str) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield base64.b64encode(b"To: b@a.test\r\n\r\n".ljust(3 * MIB // 4))
            await asyncio.sleep(0)

    async with a_mailbox(tmp_path, profile="strict") as (made, ids):
        before = made.files()
        options = {"content": blocks(), "headers": {"content-type": kind}}
        answer = await ask(made, "POST /sendMail", ids, options)
        assert refused(answer, *TOO_LARGE[:2]) == TOO_LARGE[2]
        assert made.files() == before


async def test_four_requests_at_a_time_in_a_mailbox(tmp_path: Path) -> None:
    """Each of four waits for its body; the limit is one of an account in a mailbox."""
    more = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def slow() -> AsyncIterator[bytes]:
        begun.release()
        await more.wait()
        yield json.dumps({"subject": "s"}).encode()

    async with AsyncExitStack() as stack:
        made, ids = await stack.enter_async_context(a_mailbox(tmp_path, profile="strict"))
        waiting = [
            asyncio.create_task(ask(made, "POST /messages", ids, {"content": slow()}))
            for _ in range(4)
        ]
        for _ in waiting:
            await begun.acquire()
        fifth = await ask(made, "GET /messages", ids, {})
        text = refused(fifth, 429, "ApplicationThrottled")
        assert (text, fifth.headers["retry-after"]) == (
            "Application is over its MailboxConcurrency limit.",
            "1",
        )
        bob = await ask(made, "GET /messages", ids, {"headers": {"authorization": "Bearer bob"}})
        assert bob.status_code == 200
        more.set()
        assert {one.status_code for one in await asyncio.gather(*waiting)} == {201}
        assert (await ask(made, "GET /messages", ids, {})).status_code == 200


def test_deeply_nested_resources_are_checked_without_recursion() -> None:
    message: dict[str, Any] = {"a": 1}
    for _ in range(400):
        message = {"attachments": [{"@odata.type": ATTACHED["@odata.type"], "item": message}]}
    with pytest.raises(ApiError, match="'a' does not exist"):
        check_body(message, "message")
