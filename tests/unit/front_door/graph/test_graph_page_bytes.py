"""Pages of messages have a bound in octets, and all pages together have each message once."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.base.pressure import Pressure, PressureLevel, PressureReason, PressureState
from relay.development.accounts import DevelopmentAccounts
from relay.front_door.graph import batch, graph_request
from tests.support.graph_fakes import OnDisk, graph_on_disk, refused
from tests.support.long_tests import sampled

BYTES_MAX = 20_000
TEXTS = ["x", "\r\n", '"', "é", "€", "\U0001f4ee", "\x01"]  # short and long in JSON
MESSAGES = 16
JANUARY = 1_704_067_200
SHORT_OF_MEMORY = PressureState({PressureReason.MEMORY: PressureLevel.REFUSE})
ATTACHED = (
    "Subject: number %d\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    "--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%s\r\n"
    "--b\r\nContent-Disposition: attachment; filename=a\r\n\r\n%s\r\n--b--\r\n"
)
PLAIN = "Subject: number %d\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%s"


def put(root: Path, number: int, octets: bytes, flags: str = "") -> None:
    directory = root / "example.test/alice/cur"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{JANUARY + number}.M{number}.host:2,{flags}").write_bytes(octets)


@pytest.fixture
def pressure() -> Pressure:
    return Pressure()


@pytest.fixture
async def mailbox(tmp_path: Path, pressure: Pressure) -> AsyncIterator[OnDisk]:
    """A mailbox of messages of different sizes, the largest of them larger than a page."""
    root = tmp_path / "mail"
    async with graph_on_disk(root, accounts=DevelopmentAccounts(), pressure=pressure) as made:
        assert (await made.http.get("/mailFolders/inbox")).status_code == 200
        for number in range(MESSAGES):
            text = TEXTS[number % len(TEXTS)]
            size = BYTES_MAX * 2 if number == 11 else 500 * (number % 9)
            body = text * (size // len(text))
            message = ATTACHED % (number, body, body) if number % 2 else PLAIN % (number, body)
            put(root, number, message.encode())
        yield made


async def pages(
    mailbox: OnDisk, url: str, **headers: str
) -> list[tuple[int, list[dict[str, Any]]]]:
    """The size and the items of each page, until the last."""
    found = []
    while url:
        answer = await mailbox.http.get(url, headers=headers)
        assert answer.status_code == 200, answer.text
        found.append((len(answer.content), answer.json()["value"]))
        mailbox.http.delta_link = answer.json().get("@odata.deltaLink")  # type: ignore[attr-defined]
        url = answer.json().get("@odata.nextLink", "")
    return found


def check(
    found: list[tuple[int, list[dict[str, Any]]]], expected: list[str], bytes_max: int
) -> None:
    items = [one["id"] for _, page in found for one in page]
    assert sorted(items) == sorted(expected)
    assert len(found) > 1
    assert all(size <= bytes_max or len(page) == 1 for size, page in found)


QUERIES = (
    *("$top=1000", "$top=5", "$skip=7&$top=4", "$count=true&$top=1000", "$select=body&$top=1000"),
    *("$orderby=subject&$top=1000", "$filter=hasAttachments eq true&$top=1000"),
    *('$search="subject:number"&$top=1000', "$expand=attachments&$top=1000"),
    "$expand=attachments($select=name)&$skip=2&$top=1000",
    "$expand=singleValueExtendedProperties($filter=id eq 'String 0x1045')&$top=1000",
)


@pytest.mark.parametrize("path", sampled(["/messages", "/mailFolders/inbox/messages"]))
async def test_all_pages_together_have_each_message_once(
    mailbox: OnDisk, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    urls = [f"{path}?{query}" for query in QUERIES]
    whole = {
        url: [one["id"] for _, page in await pages(mailbox, url) for one in page] for url in urls
    }
    monkeypatch.setattr(graph_request, "PAGE_BYTES_MAX", BYTES_MAX)
    for url in urls:
        found = await pages(mailbox, url)
        check(found, whole[url], BYTES_MAX)
        assert [one["id"] for _, page in found for one in page] == whole[url], url
    found = await pages(mailbox, urls[0], prefer='outlook.body-content-type="html"')
    check(found, whole[urls[0]], BYTES_MAX)


@pytest.mark.parametrize("expand", ["", "$expand=attachments&"])
async def test_delta_pages_have_each_message_once(
    mailbox: OnDisk, monkeypatch: pytest.MonkeyPatch, expand: str
) -> None:
    [(_, whole)] = await pages(mailbox, "/messages?$top=1000")
    monkeypatch.setattr(graph_request, "PAGE_BYTES_MAX", BYTES_MAX)
    found = await pages(mailbox, f"/mailFolders/inbox/messages/delta?{expand}$top=1000")
    check(found, [one["id"] for one in whole], BYTES_MAX)
    for one in whole[:3] + whole[4:]:
        await mailbox.http.patch(f"/messages/{one['id']}", json={"isRead": True})
    await mailbox.http.delete(f"/messages/{whole[3]['id']}")
    found = await pages(mailbox, mailbox.http.delta_link)  # type: ignore[attr-defined]
    check(found, [one["id"] for one in whole], BYTES_MAX)
    removed = [one["id"] for _, page in found for one in page if "@removed" in one]
    assert removed == [whole[3]["id"]]
    [(_, last)] = await pages(mailbox, mailbox.http.delta_link)  # type: ignore[attr-defined]
    assert last == []


async def test_pages_are_short_while_memory_is_short(
    mailbox: OnDisk, pressure: Pressure, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert graph_request.SHORT_PAGE_BYTES_MAX == 1024 * 1024
    monkeypatch.setattr(graph_request, "SHORT_PAGE_BYTES_MAX", BYTES_MAX)
    [(_, whole)] = await pages(mailbox, "/messages?$top=1000")
    pressure.state = SHORT_OF_MEMORY
    check(await pages(mailbox, "/messages?$top=1000"), [one["id"] for one in whole], BYTES_MAX)
    pressure.state = PressureState({PressureReason.MEMORY: PressureLevel.SLOW})
    assert len(await pages(mailbox, "/messages?$top=1000")) == 1


async def test_batches_are_refused_while_memory_is_short(
    mailbox: OnDisk, pressure: Pressure
) -> None:
    body = {"requests": [{"id": "1", "method": "GET", "url": "/me"}]}
    pressure.state = SHORT_OF_MEMORY
    answer = await mailbox.http.post("http://h/v1.0/$batch", json=body)
    assert "memory is short" in refused(answer, 503, "ResourceUnhealthy")
    assert int(answer.headers["retry-after"]) > 0
    pressure.state = PressureState({PressureReason.QUEUE: PressureLevel.REFUSE})
    assert (await mailbox.http.post("http://h/v1.0/$batch", json=body)).status_code == 200


@pytest.mark.parametrize("expand", ["", "&$expand=attachments"])
async def test_the_pages_of_a_batch_share_what_its_responses_may_have(
    mailbox: OnDisk, monkeypatch: pytest.MonkeyPatch, expand: str
) -> None:
    monkeypatch.setattr(batch, "RESPONSES_BYTES_MAX", 20 * BYTES_MAX)
    url = f"/me/messages?$top=1000{expand}"
    requests = [{"id": str(number), "method": "GET", "url": url} for number in range(20)]
    answer = await mailbox.http.post("http://h/v1.0/$batch", json={"requests": requests})
    responses = answer.json()["responses"]
    assert [one["status"] for one in responses] == [200] * 20
    assert all("@odata.nextLink" in one["body"] for one in responses)
    sizes = [len(json.dumps(one["body"], ensure_ascii=False).encode()) for one in responses]
    assert min(sizes) > BYTES_MAX // 4
    assert sum(sizes) < 21 * BYTES_MAX
    [(_, whole)] = await pages(mailbox, "/messages?$top=1000")
    first = [one["id"] for one in responses[-1]["body"]["value"]]
    rest = await pages(mailbox, responses[-1]["body"]["@odata.nextLink"])
    assert first + [one["id"] for _, page in rest for one in page] == [one["id"] for one in whole]
