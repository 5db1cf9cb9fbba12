"""Upload sessions: the requests that Graph's clients send, and errors."""

import asyncio
import base64
import errno
import random
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.base.accounts.account import Account, AccountDirectory
from relay.base.accounts.directory import AccountTables, FileAccounts
from relay.base.accounts.passwords import digest_of
from relay.base.turns import Turns
from relay.development.accounts import DevelopmentAccounts
from relay.store.mailbox.usage import QuotaLimits
from relay.submission.outbox import upload_sessions
from relay.submission.outbox.store import FileStore
from relay.submission.outbox.upload_sessions import EXPIRE_S, UPLOADS_MAX, RangeWriter, Uploads
from tests.support.graph_fakes import graph_app, refused, to
from tests.support.manual_clock import ManualClock
from tests.support.stores import open_log, open_store

ALICE = "alice@example.test"
MAX_UPLOAD = 3_000_000
OCTETS = random.Random(5).randbytes(1_500_000)
FIRST = 600_001


@dataclass
class Place:
    """A mail store on disk and a client of alice; restart() acts as another process."""

    root: Path
    clock: ManualClock
    quota_bytes: int | None = None
    store: FileStore | None = None
    http: httpx.AsyncClient | None = None
    accounts: AccountDirectory = field(default_factory=DevelopmentAccounts)

    async def restart(self) -> None:
        await self.close()
        self.store = open_store(
            self.root,
            self.clock,
            log=open_log(self.root, self.clock),
            limits_of=lambda _account: QuotaLimits(self.quota_bytes),
        )
        app = graph_app(self.store, self.clock, accounts=self.accounts, max_upload=MAX_UPLOAD)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://relay.test:8025/v1.0/me"
        )

    async def close(self) -> None:
        if self.http is not None and self.store is not None:
            await self.http.aclose()
            self.store.close()

    async def call(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> httpx.Response:
        """Send a request as alice."""
        assert self.http is not None
        headers = {"authorization": "Bearer alice"} | options.pop("headers", {})
        return await self.http.request(method, path, json=body, headers=headers, **options)

    async def draft(self) -> str:
        body = {"subject": "s", "toRecipients": to("c@a.test")}
        return str((await self.call("POST", "/messages", body)).json()["id"])

    async def session(
        self, message_id: str, size: int = len(OCTETS), **more: Any
    ) -> httpx.Response:
        item = {"attachmentType": "file", "name": "b.bin", "size": size, **more}
        path = f"/messages/{message_id}/attachments/createUploadSession"
        return await self.call("POST", path, {"AttachmentItem": item})

    async def put(
        self, url: str, start: int, octets: bytes, *, total: int = len(OCTETS), end: int = -1
    ) -> httpx.Response:
        """PUT a range without a token, as O365 does; `end` is for wrong ranges."""
        assert self.http is not None
        last = end if end >= 0 else start + len(octets) - 1
        headers = {
            "content-range": f"bytes {start}-{last}/{total}",
            "content-type": "application/octet-stream",
        }
        return await self.http.put(url, content=octets, headers=headers)

    def uploads(self) -> list[str]:
        directory = self.root / ".submissions/uploads"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path / "mail", ManualClock())
    await made.restart()
    yield made
    await made.close()


async def attached(place: Place, message_id: str) -> list[bytes]:
    answer = await place.call("GET", f"/messages/{message_id}/attachments")
    return [base64.b64decode(one["contentBytes"]) for one in answer.json()["value"]]


async def test_the_session_is_as_clients_expect_it(place: Place) -> None:
    message_id = await place.draft()
    made = await place.session(message_id, isInline=True, contentId="c1", contentType="image/png")
    assert made.status_code == 201
    told = made.json()
    assert told["nextExpectedRanges"] == ["0-"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["expirationDateTime"])
    url = told["uploadUrl"]
    found = re.fullmatch(
        r"http://relay\.test:8025/v1\.0/uploads/(\w+)\?authtoken=([\w-]{32,})", url
    )
    assert found is not None
    for other in (url.replace(found[1], "other"), url.partition("?")[0], url[:-1] + "!"):
        assert (await place.http.get(other)).status_code == 404
    one = await place.put(url, 0, OCTETS[:FIRST])
    assert one.status_code == 200
    assert one.json() == {
        "expirationDateTime": told["expirationDateTime"],
        "nextExpectedRanges": [f"{FIRST}-{len(OCTETS) - 1}"],
    }
    refused(await place.put(url, 0, OCTETS[:FIRST]), 416, "fragmentOverlap")
    two = await place.put(url, FIRST, OCTETS[FIRST:])
    assert (two.status_code, two.content) == (201, b"")
    found = re.search(r"/attachments\('([^']+)'\)", two.headers["location"])
    assert found is not None
    shown = (await place.call("GET", f"/messages/{message_id}/attachments/{found[1]}")).json()
    assert (shown["size"], shown["name"], shown["contentType"]) == (
        len(OCTETS),
        "b.bin",
        "image/png",
    )
    assert (shown["isInline"], shown["contentId"]) == (True, "c1")
    assert base64.b64decode(shown["contentBytes"]) == OCTETS
    assert (await place.call("GET", two.headers["location"])).json()["id"] == found[1]
    assert len(place.uploads()) == 1  # what is uploaded is gone, the session is known for a while


async def test_the_python_sdk_sends_the_last_range_again(place: Place) -> None:
    """A file of one range is repeated with an empty body, of several ranges with the same one."""
    message_id = await place.draft()
    url = (await place.session(message_id, 100)).json()["uploadUrl"]
    bearer = {"authorization": "Bearer nobody's"}  # which is not looked at
    assert place.http is not None
    place.http.headers.update(bearer)
    first = await place.put(url, 0, OCTETS[:100], total=100)
    again = await place.put(url, 0, b"", total=100, end=99)
    assert [one.status_code for one in (first, again)] == [201, 201]
    assert first.headers["location"] == again.headers["location"]
    url = (await place.session(message_id, 200)).json()["uploadUrl"]
    await place.put(url, 0, OCTETS[:150], total=200)
    for _ in range(3):
        assert (await place.put(url, 150, OCTETS[150:200], total=200)).status_code == 201
    assert await attached(place, message_id) == [OCTETS[:100], OCTETS[:200]]


async def test_an_upload_goes_on_after_a_restart(place: Place) -> None:
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]
    await place.put(url, 0, OCTETS[:FIRST])
    [part] = (place.root / ".submissions/uploads").glob("*@*")
    with part.open("ab") as file:
        file.write(b"a range that was cut off")
    lost = (await place.session(message_id)).json()["uploadUrl"]
    await place.put(lost, 0, OCTETS[: FIRST + 1])
    [cut] = (place.root / ".submissions/uploads").glob(f"*@{FIRST + 1}")
    cut.write_bytes(b"not all that was confirmed")
    stray = part.with_name("0" * 64 + "@5")
    stray.write_bytes(b"stray")
    odd = part.with_name("1" * 64 + ".json")
    odd.write_bytes(b"{")
    await place.restart()
    assert place.http is not None
    told = (await place.http.get(url)).json()
    assert told["nextExpectedRanges"] == [f"{FIRST}-{len(OCTETS) - 1}"]
    assert [path for path in (stray, cut, odd) if path.exists()] == []
    assert refused(await place.http.get(lost), 404, "ErrorItemNotFound")
    assert (await place.put(url, FIRST, OCTETS[FIRST:])).status_code == 201
    await place.restart()
    assert (await place.put(url, FIRST, OCTETS[FIRST:])).status_code == 201
    assert await attached(place, message_id) == [OCTETS]


async def test_a_range_that_ends_too_early_never_came(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    abort = RangeWriter.abort

    def slowly(writer: RangeWriter) -> None:
        threading.Event().wait(0.2)  # a slow disk: the client repeats the range before it ends
        abort(writer)

    monkeypatch.setattr(RangeWriter, "abort", slowly)
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]

    async def pieces() -> AsyncIterator[bytes]:
        yield OCTETS[:1000]
        yield OCTETS[1000:300_000]

    assert place.http is not None
    headers = {"content-range": f"bytes 0-{FIRST - 1}/{len(OCTETS)}"}
    answer = await place.http.put(url, content=pieces(), headers=headers)
    assert refused(answer, 400, "invalidRange")
    for start in range(0, len(OCTETS), FIRST):
        answer = await place.put(url, start, OCTETS[start : start + FIRST])
        assert answer.status_code in (200, 201)
    assert answer.status_code == 201
    assert await attached(place, message_id) == [OCTETS]


async def test_concurrent_ranges_are_rejected(place: Place) -> None:
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield OCTETS[: FIRST - 1]
        await go_on.wait()
        yield OCTETS[FIRST - 1 : FIRST]

    assert place.http is not None
    headers = {"content-range": f"bytes 0-{FIRST - 1}/{len(OCTETS)}"}
    first = asyncio.create_task(place.http.put(url, content=slow(), headers=headers))
    async with asyncio.timeout(120):
        while not any("@" in name for name in place.uploads()):
            await asyncio.sleep(0.01)
    second = await place.put(url, 0, OCTETS[:FIRST])
    assert refused(second, 409, "ErrorIrresolvableConflict")
    assert refused(await place.http.delete(url), 409, "ErrorIrresolvableConflict")
    go_on.set()
    assert (await first).status_code == 200


async def test_a_session_ends(place: Place) -> None:
    message_id = await place.draft()
    assert place.http is not None
    url = (await place.session(message_id)).json()["uploadUrl"]
    await place.put(url, 0, OCTETS[:FIRST])
    gone = await place.http.delete(url)
    assert (gone.status_code, gone.content, place.uploads()) == (204, b"", [])
    for method in ("GET", "PUT", "DELETE"):
        answer = await place.http.request(method, url, headers={"content-range": "bytes 0-0/1"})
        assert refused(answer, 404, "ErrorItemNotFound")
    url = (await place.session(message_id)).json()["uploadUrl"]
    await place.put(url, 0, OCTETS[:FIRST])
    place.clock.advance(EXPIRE_S - 1)
    assert (await place.http.get(url)).status_code == 200
    place.clock.advance(2)
    assert refused(await place.http.get(url), 404, "ErrorItemNotFound")
    assert place.uploads() == []
    assert refused(await place.http.post(url), 405, "Request_BadRequest")
    assert refused(
        await place.http.get(url.replace("?", "/more?")), 401, "InvalidAuthenticationToken"
    )


async def test_a_time_that_may_not_have_passed_ends_no_session(place: Place) -> None:
    url = (await place.session(await place.draft())).json()["uploadUrl"]
    place.clock.advance(400 * 86400)
    place.clock.doubtful_us = 400 * 86_400_000_000
    assert (await place.http.get(url)).status_code == 200
    place.clock.doubtful_us = 0
    assert refused(await place.http.get(url), 404, "ErrorItemNotFound")


@pytest.mark.parametrize("days", [2, -2])
async def test_a_jump_of_the_clock_ends_no_session(place: Place, days: int) -> None:
    url = (await place.session(await place.draft())).json()["uploadUrl"]
    await place.put(url, 0, OCTETS[:FIRST])
    place.clock.jumped_us = int(days * EXPIRE_S * 1_000_000)
    told = await place.http.get(url)
    assert told.status_code == 200
    ends = datetime.fromisoformat(told.json()["expirationDateTime"]).timestamp()
    assert abs(ends - place.clock.time_us() / 1_000_000 - EXPIRE_S) < 2  # by the clock as it is now


async def test_a_draft_that_is_being_sent_takes_no_upload(place: Place) -> None:
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]
    await place.put(url, 0, OCTETS[:FIRST])
    assert (await place.call("POST", f"/messages/{message_id}/send")).status_code == 202
    answer = await place.put(url, FIRST, OCTETS[FIRST:])
    assert refused(answer, 409, "ErrorIrresolvableConflict")
    answer = await place.put(url, FIRST, OCTETS[FIRST:])
    assert refused(answer, 409, "ErrorIrresolvableConflict")
    assert refused(await place.session(message_id), 409, "ErrorIrresolvableConflict")
    assert await attached(place, message_id) == []


async def test_an_upload_to_a_deleted_draft_is_404(place: Place) -> None:
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]
    await place.call("POST", f"/messages/{message_id}/permanentDelete")
    assert refused(await place.put(url, 0, OCTETS[:FIRST]), 404, "ErrorItemNotFound")
    assert place.uploads() == []
    assert refused(await place.session(message_id), 404, "ErrorItemNotFound")


@pytest.mark.parametrize("path", ["/send", "", "/permanentDelete"])
async def test_a_sent_or_deleted_draft_keeps_no_place_or_quota(place: Place, path: str) -> None:
    stays = await place.draft()
    for _ in range(UPLOADS_MAX - 1):
        message_id = await place.draft()
        url = (await place.session(message_id)).json()["uploadUrl"]
        method = "POST" if path else "DELETE"
        assert (await place.call(method, f"/messages/{message_id}{path}")).is_success
        for sent in await place.store._threads.run(place.store._directory.list_ready, (), 9):
            await place.store.ready.complete(sent, queue_id="q")
        assert (await place.session(message_id)).status_code in (400, 404)
    assert (await place.session(stays)).status_code == 201
    await place.call("POST", f"/messages/{stays}/move", {"destinationId": "archive"})
    used = (await place.session(stays)).status_code, len(place.uploads())
    assert used == (201, 2)
    assert refused(await place.put(url, 0, OCTETS), 404, "ErrorItemNotFound")


async def test_uploads_are_bounded(place: Place) -> None:
    message_id = await place.draft()
    too_large = await place.session(message_id, MAX_UPLOAD + 1)
    assert str(MAX_UPLOAD) in refused(too_large, 413, "ErrorMessageSizeExceeded")
    made = [await place.session(message_id, 1000) for _ in range(UPLOADS_MAX)]
    answer = await place.session(message_id, 1000)
    assert str(UPLOADS_MAX) in refused(answer, 429, "ApplicationThrottled")
    assert int(answer.headers["retry-after"]) == EXPIRE_S
    await place.put(made[0].json()["uploadUrl"], 0, bytes(1000), total=1000)
    assert (await place.session(message_id, 1000)).status_code == 201
    url = (await place.session(await place.draft(), 1000)).status_code
    assert url == 429


async def test_of_complete_uploads_the_oldest_are_forgotten_and_none_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_sessions, "ATTACHED_MAX", 3)
    message_id, urls = await place.draft(), list[str]()

    async def remembered() -> list[bool]:
        """Whether the last range may be repeated, by upload."""
        assert place.http is not None
        return [(await place.http.get(url)).status_code == 200 for url in urls]

    for _ in range(5):
        place.clock.advance(1)
        urls.append((await place.session(message_id, 1)).json()["uploadUrl"])
        assert (await place.put(urls[-1], 0, b"x", total=1)).status_code == 201
    assert await remembered() == [False, False, True, True, True]
    await place.restart()
    place.clock.advance(1)
    urls.append((await place.session(message_id, 1)).json()["uploadUrl"])
    assert (await place.put(urls[-1], 0, b"x", total=1)).status_code == 201
    assert await remembered() == [False, False, False, True, True, True]
    assert len(place.uploads()) == 3
    assert len(await attached(place, message_id)) == 6


async def test_all_attachments_together_are_bounded(place: Place) -> None:
    message_id = await place.draft()
    urls = [(await place.session(message_id, 2_000_000)).json()["uploadUrl"] for _ in range(2)]
    assert (await place.put(urls[0], 0, bytes(2_000_000), total=2_000_000)).status_code == 201
    answer = await place.put(urls[1], 0, bytes(2_000_000), total=2_000_000)
    assert refused(answer, 413, "ErrorMessageSizeExceeded")
    assert len(await attached(place, message_id)) == 1


async def test_an_announced_upload_counts_towards_the_quota(place: Place) -> None:
    place.quota_bytes = 3_000_000
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]  # 2.05 MB in base64
    full = await place.session(message_id)
    assert refused(full, 507, "ErrorQuotaExceeded")
    await place.restart()
    assert refused(await place.session(message_id), 507, "ErrorQuotaExceeded")
    assert (await place.put(url, 0, OCTETS)).status_code == 201
    assert (await place.session(message_id, 500_000)).status_code == 201
    assert refused(await place.session(message_id, 500_000), 507, "ErrorQuotaExceeded")
    await place.call("POST", f"/messages/{message_id}/permanentDelete")
    assert (await place.session(await place.draft(), 500_000)).status_code == 201


async def test_a_file_is_attached_once_though_the_disk_fails_afterwards(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = await place.draft()
    url = (await place.session(message_id)).json()["uploadUrl"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "_write", full)
        assert refused(await place.put(url, 0, OCTETS), 503, "ResourceUnhealthy")
    assert await attached(place, message_id) == [OCTETS]
    await place.restart()
    answer = await place.put(url, 0, b"", end=len(OCTETS) - 1)
    assert answer.status_code == 201
    assert await attached(place, message_id) == [OCTETS]


async def test_a_session_that_cannot_be_written_is_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = await place.draft()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(upload_sessions, "write_synced", full)
        assert refused(await place.session(message_id), 503, "ResourceUnhealthy")
    assert place.uploads() == []
    made = [await place.session(message_id, 1000) for _ in range(UPLOADS_MAX)]
    assert {one.status_code for one in made} == {201}


@pytest.mark.parametrize("left", [(), (Account("bob@example.test", aliases=(ALICE,)),)])
async def test_an_upload_url_goes_with_its_account(place: Place, left: tuple[Account, ...]) -> None:
    url = (await place.session(await place.draft())).json()["uploadUrl"]
    assert (await place.put(url, 0, OCTETS[:100])).status_code == 200
    accounts = place.accounts = FileAccounts(AccountTables(), place.clock)
    for account in left:
        accounts.tables.add(account, password=None, token=None)
    await place.restart()
    assert place.http is not None
    for answer in (
        await place.http.get(url),
        await place.put(url, 100, OCTETS[100:]),
        await place.http.delete(url),
    ):
        refused(answer, 404, "ErrorItemNotFound")
    assert len(place.uploads()) == 2
    accounts.close()


async def test_an_upload_url_goes_with_the_right_to_open_the_mailbox(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that acts for nobody any more uploads no further. Its shares are its own."""
    keys: list[str] = []
    take = Turns.take
    monkeypatch.setattr(Turns, "take", lambda *a, **k: keys.append(a[1]) or take(*a, **k))
    alice = Account("alice@example.test")

    def with_app(*acts_for: str) -> FileAccounts:
        tables = AccountTables()
        tables.add(alice, password=None, token=None)
        app = Account("app@example.test", acts_for=acts_for)
        tables.add(app, password=None, token=digest_of("app"))
        return FileAccounts(tables, place.clock)

    place.accounts = with_app("*@example.test")
    await place.restart()
    assert place.http is not None
    headers = {"authorization": "Bearer app"}
    mailbox = "http://relay.test:8025/v1.0/users/alice@example.test/messages"
    draft = await place.http.post(mailbox, json={"subject": "s"}, headers=headers)
    item = {"AttachmentItem": {"attachmentType": "file", "name": "f", "size": len(OCTETS)}}
    path = f"{mailbox}/{draft.json()['id']}/attachments/createUploadSession"
    url = (await place.http.post(path, json=item, headers=headers)).json()["uploadUrl"]
    assert (await place.put(url, 0, OCTETS[:FIRST])).status_code == 200
    assert keys[-1] == "app@example.test"
    for acts_for, status in (
        (("bob@example.test",), 404),
        ((), 404),
        (("alice@example.test",), 200),
    ):
        place.accounts = with_app(*acts_for)
        await place.restart()
        assert (await place.http.get(url)).status_code == status
