"""Bad input for every operation: Graph's status and code, the request's id, and nothing changed.

The operations are those of relay/front_door/graph/routes.py: each needs a row in ROWS. One mailbox serves all
tests, because none may change it.
"""

import asyncio
import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from uvloop import new_event_loop

from relay.development.accounts import DevelopmentAccounts
from relay.front_door.graph.delta import TOKEN_CHARACTERS_MAX
from relay.front_door.graph.routes import _ROUTES
from tests.support.graph_fakes import AS_ALICE, graph_app, refused, to
from tests.support.long_tests import sampled
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on
from tests.support.tables import each_row

MAX_BODY = 32 * 1024
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# Methods that Graph has and Relay has not, on paths where it has others.
ONLY_IN_GRAPH = {
    "": ("PATCH", "DELETE"),
    "messages/{message}/$value": ("DELETE",),
    "messagerules": ("POST", "PATCH", "DELETE"),
    "inferenceclassification/overrides": ("POST",),
    "outlook/mastercategories": ("POST",),
}
FILE = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "a", "contentBytes": "aGk="}
GRAPHS_ID = "AAMkADU3ZDY3YTBkLTcyYzUtNDg4Zi1iZjM4LTRhMjhjYzA0NzA1ZgBGAAAAAAA="
MIME = b"To: bob@example.test\r\nSubject: m\r\n\r\ntext\r\n"
BASE64 = base64.b64encode(MIME)
JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}
BAD_OPTIONS = ("$colour=1", "$format=xml", "$apply=x")
BAD_SELECT = ("$select=colour", "$select=id,colour")
BAD_PAGES = ("$top=x", "$top=-1", "$top=0", "$top=٣", "$skip=-1", "$count=maybe", "$top=1&$top=2")
BAD_CONDITIONS = (
    *("$filter=subject eq", "$filter=colour eq 'x'", "$filter=(isRead eq true", "$filter=1"),
    *("$filter=receivedDateTime ge yesterday", "$filter=subject eq 'x", "$filter=%00"),
    *('$search="', '$search="x" OR', "$search=", "$skiptoken=zz", "$skiptoken=%00", "$filter="),
    *("$orderby=", "$orderby=subject,", "$orderby=subject,SUBJECT desc", "$orderby=bodyPreview"),
    *("$orderby=id,subject,isRead,isDraft,importance,sentDateTime", "$filter=bodyPreview eq 'x'"),
    "$orderby=toRecipients/emailAddress/address",
)
EXTENDED = "$expand=singleValueExtendedProperties"
BAD_EXPAND = (
    *("$expand=colour", "$expand=extensions", "$expand=", "$expand=attachments($select=colour)"),
    *(EXTENDED, f"{EXTENDED}()", f"{EXTENDED}($filter=id eq 'x')"),
    f"{EXTENDED}($filter=value eq 'String 0x1045')",
    f"{EXTENDED}($filter=id eq 'String 0x1045' and id eq 'String 0x1044')",
    f"{EXTENDED}($filter=id eq 'String 0x1045' or )",
    f"{EXTENDED}($filter=id eq 'String 0x1045'),",
)
_REQUIRED = "ErrorRequiredPropertyMissing"
_TYPE = "RequestBodyRead"
Bad = tuple[object, str]  # a JSON body and the code of its 400
_MESSAGE: tuple[Bad, ...] = (
    ({"subject": 5}, _TYPE),
    ({"body": "text"}, _TYPE),
    ({"body": {"contentType": "pdf", "content": ""}}, _TYPE),
    ({"toRecipients": "a@b.test"}, _TYPE),
    ({"toRecipients": [5]}, _TYPE),
    ({"toRecipients": [{"emailAddress": {"address": "no"}}]}, "ErrorInvalidRecipients"),
    ({"importance": "urgent"}, _TYPE),
    ({"categories": "red"}, _TYPE),
    ({"isReadReceiptRequested": "maybe"}, _TYPE),
    ({"flag": {"flagStatus": "blue"}}, _TYPE),
    ({"subject": "a\0b"}, "ErrorInvalidRequest"),
    ({"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": "soon"}]}, _TYPE),
    ({"singleValueExtendedProperties": [{"id": "Colour 0x1", "value": "x"}]}, _TYPE),
)
_NEW_MESSAGE: tuple[Bad, ...] = (
    *_MESSAGE,
    ({"internetMessageHeaders": [{"name": "Foo", "value": "x"}]}, "InvalidInternetMessageHeader"),
    ({"attachments": [FILE | {"contentBytes": "@@@"}]}, _TYPE),
    ({"attachments": [FILE | {"contentBytes": None}]}, _REQUIRED),
    ({"attachments": [FILE | {"name": ""}]}, _REQUIRED),
    ({"attachments": {}}, _TYPE),
)
_DESTINATION: tuple[Bad, ...] = (
    ({}, _TYPE),
    ({"destinationId": ""}, "ErrorInvalidIdMalformed"),
    ({"destinationId": 5}, _TYPE),
    ({"destinationId": "x" * 600}, "ErrorInvalidRequest"),
    ({"destinationId": "drafts", "colour": 1}, _TYPE),
)
_FOLDER: tuple[Bad, ...] = (
    ({"displayName": 5}, _TYPE),
    ({"displayName": "a\nb"}, "ErrorInvalidRequest"),
    ({"displayName": "~a"}, "ErrorInvalidRequest"),
    ({"displayName": "x" * 300}, "ErrorInvalidRequest"),
    ({"displayName": "x", "isHidden": "maybe"}, _TYPE),
)
_ATTACHMENT: tuple[Bad, ...] = (
    ({}, _REQUIRED),
    (FILE | {"contentBytes": "@@@"}, _TYPE),
    (FILE | {"contentBytes": None}, _REQUIRED),
    (FILE | {"name": None}, _REQUIRED),
    (FILE | {"name": "a\nb"}, "ErrorInvalidRequest"),
    (FILE | {"isInline": "maybe"}, _TYPE),
    (FILE | {"@odata.type": "#microsoft.graph.linkAttachment"}, _TYPE),
)
_UPLOAD: tuple[Bad, ...] = (
    ({}, _TYPE),
    ({"AttachmentItem": 5}, _TYPE),
    ({"AttachmentItem": {"attachmentType": "file", "size": 1}}, _REQUIRED),
    *(
        ({"AttachmentItem": {"attachmentType": "file", "name": "a", "size": size}}, _TYPE)
        for size in (0, -1, "x", 1.5, True)
    ),
    ({"AttachmentItem": {"attachmentType": "link", "name": "a", "size": 1}}, _TYPE),
)
_SEND: tuple[Bad, ...] = (
    ({}, _TYPE),
    ({"message": 5}, _TYPE),
    ({"message": {"subject": "s"}}, "ErrorInvalidRecipients"),
    ({"message": {"toRecipients": to("a@b.test")}, "saveToSentItems": "maybe"}, _TYPE),
    ({"message": {"toRecipients": to("a@b.test")}, "colour": 1}, _TYPE),
)
_SETTINGS: tuple[Bad, ...] = (
    ({"timeZone": "Mars"}, "TimeZoneNotSupportedException"),
    ({"timeZone": "a\nb"}, "ErrorInvalidRequest"),
    ({"language": "de"}, _TYPE),
    ({"automaticRepliesSetting": {"status": "x"}}, _TYPE),
)
_TRANSLATE = {"inputIds": ["a"], "sourceIdType": "restId", "targetIdType": "restImmutableEntryId"}
_TRANSLATED: tuple[Bad, ...] = (
    ({}, _TYPE),
    (_TRANSLATE | {"colour": 1}, _TYPE),
    (_TRANSLATE | {"inputIds": "a"}, _TYPE),
    (_TRANSLATE | {"inputIds": ["a"] * 1001}, "ErrorInvalidRequest"),
    (_TRANSLATE | {"sourceIdType": "colour"}, _TYPE),
)


@dataclass(frozen=True)
class Row:
    """What an operation takes: a valid body, bad ones, and the query options that it refuses.

    `mime`: MIME in base64 is taken as well ("also"), or nothing else ("only"). `conditional`: it
    reads If-Match.
    """

    valid: object = None
    bad: tuple[Bad, ...] = ()
    options: tuple[str, ...] = BAD_OPTIONS
    mime: str = ""
    conditional: bool = False
    may_be_empty: bool = False


_LISTED = (*BAD_OPTIONS, *BAD_SELECT, *BAD_PAGES)
_DELTA = Row(
    options=(
        *(
            *BAD_OPTIONS,
            *BAD_SELECT,
            "$deltatoken=zz",
            "$skiptoken=zz",
            "$skiptoken=x&$deltatoken=y",
        ),
        *("$filter=isRead eq false", "$filter=receivedDateTime le 2024-01-01", "$orderby=subject"),
        *("$filter=receivedDateTime ge", "$orderby=receivedDateTime", '$search="x"', "$count=true"),
        *("$skip=1", "$top=0", "$expand=nothing", "$skiptoken=%21", "$deltatoken=AAAA"),
        f"$deltatoken={'A' * (TOKEN_CHARACTERS_MAX + 1)}",
    )
)
ROWS: dict[tuple[str, str], Row] = {
    ("", "GET"): Row(options=("$select=colour",)),
    ("sendmail", "POST"): Row({"message": {"toRecipients": to("a@b.test")}}, _SEND, mime="also"),
    ("translateexchangeids", "POST"): Row(_TRANSLATE, _TRANSLATED),
    ("inferenceclassification/overrides", "GET"): Row(),
    ("outlook/mastercategories", "GET"): Row(),
    ("mailfolders/{folder}/messagerules", "GET"): Row(),
    ("outlook/supportedtimezones", "GET"): Row(),
    ("mailboxsettings", "GET"): Row(options=(*BAD_OPTIONS, *BAD_SELECT)),
    ("mailboxsettings", "PATCH"): Row({"timeZone": "UTC"}, _SETTINGS),
    ("mailboxsettings/{setting}", "GET"): Row(),
    ("messages", "GET"): Row(options=(*_LISTED, *BAD_CONDITIONS, *BAD_EXPAND)),
    ("messages", "POST"): Row({"subject": "s"}, _NEW_MESSAGE, mime="also"),
    ("messages/$count", "GET"): Row(options=(*BAD_OPTIONS, "$top=1", "$filter=colour eq 1")),
    ("messages/delta", "GET"): _DELTA,
    ("messages/{message}", "GET"): Row(options=(*BAD_OPTIONS, *BAD_SELECT, "$expand=colour")),
    ("messages/{message}", "PATCH"): Row({"subject": "s"}, _MESSAGE, conditional=True),
    ("messages/{message}", "DELETE"): Row(conditional=True),
    ("messages/{message}/send", "POST"): Row(conditional=True),
    **{
        (f"messages/{{message}}/{name}", "POST"): Row(
            {"comment": "c"}, mime="also", may_be_empty=True
        )
        for name in ("reply", "replyall", "createreply", "createreplyall", "createforward")
    },
    ("messages/{message}/forward", "POST"): Row(
        {"toRecipients": to("a@b.test")}, mime="also", may_be_empty=True
    ),
    ("messages/{message}/move", "POST"): Row(
        {"destinationId": "archive"}, _DESTINATION, conditional=True
    ),
    ("messages/{message}/copy", "POST"): Row(
        {"destinationId": "archive"}, _DESTINATION, conditional=True
    ),
    ("messages/{message}/permanentdelete", "POST"): Row(conditional=True),
    ("messages/{message}/attachments", "GET"): Row(options=_LISTED),
    ("messages/{message}/attachments", "POST"): Row(FILE, _ATTACHMENT),
    ("messages/{message}/attachments/createuploadsession", "POST"): Row(
        {"AttachmentItem": {"attachmentType": "file", "name": "a", "size": 5}}, _UPLOAD
    ),
    ("messages/{message}/attachments/{attachment}", "GET"): Row(
        options=(*BAD_OPTIONS, *BAD_SELECT, "$expand=colour")
    ),
    ("messages/{message}/attachments/{attachment}", "DELETE"): Row(),
    ("messages/{message}/attachments/{attachment}/$value", "GET"): Row(),
    ("messages/{message}/$value", "GET"): Row(),
    ("messages/{message}/$value", "PUT"): Row(mime="only", conditional=True),
    ("mailfolders", "GET"): Row(options=(*_LISTED, "$filter=colour eq 1", "$orderby=colour")),
    ("mailfolders/$count", "GET"): Row(options=(*BAD_OPTIONS, "$filter=colour eq 1")),
    ("mailfolders/{folder}/childfolders/$count", "GET"): Row(),
    ("mailfolders/{folder}/copy", "POST"): Row({"destinationId": "archive"}, _DESTINATION),
    ("messages/{message}/attachments/$count", "GET"): Row(),
    ("mailfolders", "POST"): Row({"displayName": "new"}, (({}, _REQUIRED), *_FOLDER)),
    ("mailfolders/{folder}", "GET"): Row(options=(*BAD_OPTIONS, *BAD_SELECT)),
    ("mailfolders/{folder}", "PATCH"): Row({"displayName": "new"}, _FOLDER, conditional=True),
    ("mailfolders/{folder}", "DELETE"): Row(conditional=True),
    ("mailfolders/{folder}/childfolders", "GET"): Row(options=(*_LISTED, "$filter=colour eq 1")),
    ("mailfolders/{folder}/childfolders", "POST"): Row(
        {"displayName": "new"}, (({}, _REQUIRED), *_FOLDER)
    ),
    ("mailfolders/{folder}/move", "POST"): Row(
        {"destinationId": "archive"}, _DESTINATION, conditional=True
    ),
    ("mailfolders/{folder}/permanentdelete", "POST"): Row(conditional=True),
}
PATTERNS = {
    "/".join(path): by_method for path, by_method in _ROUTES if not isinstance(by_method, str)
}
OPERATIONS = [(path, method) for path, by_method in PATTERNS.items() for method in by_method]
_IN_FOLDER = "mailfolders/{folder}/messages"


def row_of(path: str, method: str) -> Row:
    """Return the row; messages within a folder are like all messages."""
    if path.startswith(_IN_FOLDER):
        path = path.removeprefix("mailfolders/{folder}/")
    return ROWS[path, method]


def operations(wanted: Any) -> Any:
    """A test of all operations whose row is wanted; of those in a folder, a part."""
    found = [one for one in OPERATIONS if wanted(row_of(*one))]
    within = [one for one in found if one[0].startswith(_IN_FOLDER)]
    return each_row(
        "path, method", [*(one for one in found if one not in within), *sampled(within)]
    )


@dataclass
class World:
    """A mailbox with a draft and a folder, another user's draft, and a client."""

    runner: asyncio.Runner
    http: httpx.AsyncClient
    root: Path
    clock: ManualClock
    ids: dict[str, str] = field(default_factory=dict)
    others: str = ""
    upload: str = ""
    last: dict[str, bytes] = field(default_factory=dict)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.http.request(method, path, **options))

    def path(self, pattern: str, **ids: str) -> str:
        """Return the path of an operation, with ids that exist."""
        known = {"folder": "drafts" if pattern.startswith(_IN_FOLDER) else self.ids["folder"]}
        return "/" + pattern.format(**{**self.ids, **known, **ids})

    def state(self) -> dict[str, bytes]:
        """Return all files, except the indexes."""
        return {
            f"{folder}/{name}": Path(folder, name).read_bytes()
            for folder, _, names in os.walk(self.root)
            for name in names
            if not name.startswith("relay-index")
        }

    def unchanged(self) -> bool:
        """Return whether all files are as they were at the last question."""
        before, self.last = self.last, self.state()
        return self.last == before

    def refused(
        self, method: str, path: str, status: int, code: str, **options: Any
    ) -> httpx.Response:
        """Make a request, and check the refusal."""
        answer = self.ask(method, path, **options)
        message = refused(answer, status, code)
        assert message, options
        assert not any(
            sign in answer.text for sign in ("Traceback", 'File \\"', ".py", "object at")
        )
        return answer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root, clock = tmp_path_factory.mktemp("world") / "mail", ManualClock()
    with asyncio.Runner(loop_factory=new_event_loop) as runner, store_on(root, clock) as store:
        app = graph_app(store, clock, accounts=DevelopmentAccounts(), max_body=MAX_BODY)
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://h/v1.0/me", headers=AS_ALICE
        )
        made = World(runner, http, root, clock)
        draft = {"subject": "s", "toRecipients": to("b@a.test"), "attachments": [FILE]}
        message = made.ask("POST", "/messages", json=draft).json()["id"]
        path = f"/messages/{message}/attachments"
        made.ids = {
            "message": message,
            "attachment": made.ask("GET", path).json()["value"][0]["id"],
            "folder": made.ask("POST", "/mailFolders", json={"displayName": "P"}).json()["id"],
            "setting": "timeZone",
        }
        as_bob = {"authorization": "Bearer bob"}
        made.others = made.ask("POST", "/messages", json=draft, headers=as_bob).json()["id"]
        item = {"AttachmentItem": {"attachmentType": "file", "name": "f", "size": 10}}
        made.upload = made.ask("POST", f"{path}/createUploadSession", json=item).json()["uploadUrl"]
        made.last = made.state()
        yield made
        runner.run(http.aclose())


@pytest.fixture(autouse=True)
def nothing_changes(world: World) -> Iterator[None]:
    """Asked once a test: to look after each of its requests takes longer than they do."""
    yield
    assert world.unchanged()


def body_of(row: Row) -> dict[str, Any]:
    """Return the options of a request with the valid body."""
    if row.mime == "only":
        return {"content": BASE64, "headers": TEXT}
    return {} if row.valid is None else {"json": row.valid}


def test_every_operation_has_a_row() -> None:
    told = {
        (
            path.removeprefix("mailfolders/{folder}/") if path.startswith(_IN_FOLDER) else path,
            method,
        )
        for path, method in OPERATIONS
    }
    assert told == set(ROWS)


@each_row("path", PATTERNS)
def test_wrong_methods(world: World, path: str) -> None:
    for method in set(METHODS) - set(PATTERNS[path]):
        if method in ONLY_IN_GRAPH.get(path.removeprefix("mailfolders/{folder}/"), ()):
            world.refused(method, world.path(path), 501, "NotImplemented")
        else:
            answer = world.refused(method, world.path(path), 405, "Request_BadRequest")
            assert answer.headers["allow"] == ", ".join(PATTERNS[path])


@operations(lambda _: True)
def test_ids_that_are_not_there(world: World, path: str, method: str) -> None:
    body = body_of(row_of(path, method))
    code = "ErrorItemNotFound"
    for name in ("message", "folder", "attachment"):
        for unknown in (GRAPHS_ID, *([world.others] if name == "message" else [])):
            if f"{{{name}}}" in path:
                world.refused(method, world.path(path, **{name: unknown}), 404, code, **body)


@operations(lambda _: True)
def test_malformed_ids(world: World, path: str, method: str) -> None:
    body = body_of(row_of(path, method))
    for name in ("message", "folder", "attachment", "setting"):
        if f"{{{name}}}" not in path:
            continue
        code = "RequestBroker--ParseUri" if name == "setting" else "ErrorInvalidIdMalformed"
        for malformed in ("unknown77", "a b", "%C3%BC", "a%00b", "x" * 600):
            world.refused(method, world.path(path, **{name: malformed}), 400, code, **body)


@operations(lambda _: True)
def test_mailboxes_of_others_and_no_token(world: World, path: str, method: str) -> None:
    body = body_of(row_of(path, method))
    for user in ("bob@example.test", "nobody@example.test", "no address"):
        url = f"http://h/v1.0/users/{user}{world.path(path)}"
        world.refused(method, url, 403, "ErrorAccessDenied", **body)
    body["headers"] = body.get("headers", {}) | {"authorization": "Bearer "}
    world.refused(method, world.path(path), 401, "InvalidAuthenticationToken", **body)


@operations(lambda row: row.options)
def test_query_options(world: World, path: str, method: str) -> None:
    row = row_of(path, method)
    for option in row.options:
        url = f"{world.path(path)}?{option}"
        answer = world.ask(method, url, **body_of(row))
        assert answer.status_code == 400, (option, answer.status_code, answer.text)
        code = answer.json()["error"]["code"]
        assert code in ("BadRequest", "ErrorInvalidUrlQueryFilter", "ErrorInvalidUrlQuery"), option
        refused(answer, 400, code)


@operations(lambda row: row.conditional)
def test_malformed_if_match(world: World, path: str, method: str) -> None:
    body = body_of(row_of(path, method))
    headers = body.get("headers", {})
    for tag in ('"', "a b", '"\x01"', ",", "", 'W/"no end', 'W/""', '"a" "b"', "W/*,"):
        body["headers"] = headers | {"if-match": tag}
        answer = world.refused(method, world.path(path), 400, "BadRequest", **body)
        assert "If-Match" in answer.json()["error"]["message"]


@operations(lambda row: row.valid is not None or row.mime)
def test_wrong_content_types(world: World, path: str, method: str) -> None:
    form = "application/x-www-form-urlencoded"
    for kind in ("application/xml", "multipart/form-data", form, "x"):
        body = {"content": b'{"a": 1}', "headers": {"content-type": kind}}
        world.refused(method, world.path(path), 415, "UnsupportedMediaType", **body)


@operations(lambda row: row.valid is not None and not row.mime)
def test_json_only(world: World, path: str, method: str) -> None:
    world.refused(
        method, world.path(path), 415, "UnsupportedMediaType", content=BASE64, headers=TEXT
    )


@operations(lambda row: row.valid is not None)
def test_bodies_that_are_no_json_object(world: World, path: str, method: str) -> None:
    bad = [b"{", b"[]", b'"text"', b"5", b"null", b"\xff\xfe", b'{"a": "\xff"}', b"[" * 20_000]
    if not row_of(path, method).may_be_empty:
        bad.append(b"")
    for content in bad:
        body = {"content": content, "headers": JSON}
        world.refused(method, world.path(path), 400, "UnableToDeserializePostBody", **body)


@operations(lambda row: row.bad)
def test_wrong_values(world: World, path: str, method: str) -> None:
    for body, code in row_of(path, method).bad:
        world.refused(method, world.path(path), 400, code, json=body)


@operations(lambda row: "destinationId" in (row.valid or {}))
def test_unknown_destinations(world: World, path: str, method: str) -> None:
    for unknown, status, code in (
        (GRAPHS_ID, 404, "ErrorItemNotFound"),
        ("clutter", 404, "ErrorItemNotFound"),
        ("nosuch", 400, "ErrorInvalidIdMalformed"),
        ("../inbox", 400, "ErrorInvalidIdMalformed"),
    ):
        body = {"destinationId": unknown}
        world.refused(method, world.path(path), status, code, json=body)


@operations(lambda row: row.mime)
def test_broken_mime(world: World, path: str, method: str) -> None:
    for content, code in (
        (b"@@@", "ErrorMimeContentInvalidBase64String"),
        (BASE64[:-3], "ErrorMimeContentInvalidBase64String"),
        (BASE64 + b"=x", "ErrorMimeContentInvalidBase64String"),
        (base64.b64encode(b"no header"), "ErrorMimeContentInvalid"),
        *([] if row_of(path, method).may_be_empty else [(b"", "ErrorMimeContentInvalid")]),
    ):
        world.refused(method, world.path(path), 400, code, content=content, headers=TEXT)


@operations(lambda row: row.valid is not None)
def test_bodies_that_are_too_large(world: World, path: str, method: str) -> None:
    content = b'{"a": "' + b"x" * MAX_BODY + b'"}'
    world.refused(
        method, world.path(path), 413, "RequestEntityTooLarge", content=content, headers=JSON
    )


# -- upload sessions, which are outside mailboxes


@each_row(
    "content_range, content, status, code",
    [
        ("", b"x", 400, "invalidRange"),
        ("bytes", b"x", 400, "invalidRange"),
        ("bytes 0-x/10", b"x", 400, "invalidRange"),
        ("bytes 0-4/*", b"x", 400, "invalidRange"),
        ("bytes 0-4/11", b"xxxxx", 400, "invalidRange"),
        ("bytes 0-4/10", b"xxxx", 400, "invalidRange"),
        ("bytes 0-4/10", b"xxxxxx", 400, "invalidRange"),
        ("bytes -1-4/10", b"xxxxx", 400, "invalidRange"),
        ("bytes 5-4/10", b"xx", 416, "invalidRange"),
        ("bytes 0-10/10", b"x" * 11, 416, "invalidRange"),
        ("bytes 5-9/10", b"xxxxx", 416, "fragmentOutOfOrder"),
        ("items 0-9/10", b"x" * 10, 400, "invalidRange"),
    ],
)
def test_bad_ranges(
    world: World, content_range: str, content: bytes, status: int, code: str
) -> None:
    headers = {"content-range": content_range}
    before = world.last
    refused(world.ask("PUT", world.upload, content=content, headers=headers), status, code)
    world.last = after = world.state()
    assert {name: text for name, text in after.items() if "/uploads/" not in name} == {
        name: text for name, text in before.items() if "/uploads/" not in name
    }
    assert world.ask("GET", world.upload).json()["nextExpectedRanges"] == ["0-9"]


@each_row("method", ["POST", "PATCH"])
def test_wrong_methods_of_uploads(world: World, method: str) -> None:
    answer = world.refused(method, world.upload, 405, "Request_BadRequest")
    assert answer.headers["allow"] == "GET, PUT, DELETE"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("token", ["unknown", "a%00b", "x" * 600, "%C3%BC"])
def test_unknown_uploads(world: World, method: str, token: str) -> None:
    url = f"http://h/v1.0/uploads/some?authtoken={token}"
    headers = {"content-range": "bytes 0-9/10"}
    world.refused(method, url, 404, "ErrorItemNotFound", headers=headers)
