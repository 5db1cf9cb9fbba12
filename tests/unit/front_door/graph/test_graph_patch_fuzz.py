"""Random PATCHes of messages: each answer is what GET, $filter and delta return afterwards."""

import json
import operator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from relay.development.accounts import DevelopmentAccounts
from tests.support.graph_fakes import OnDisk, graph_on_disk, to
from tests.support.long_tests import sampled

MIME = (
    b"From: Bob <bob@a.test>\r\nTo: alice@example.test\r\nSubject: order\r\nKeywords: File, two\r\n"
    b"Importance: high\r\nMessage-ID: <%d@a.test>\r\nContent-Type: text/html\r\n\r\n<p>body</p>\r\n"
)
NAMED = "{00020329-0000-0000-C000-000000000046} Name"
TEXTS = [
    *("Done", "done", "a,b", "Größe", "e\u0301", "😀", '"q" \\', "=?utf-8?q?x?=", "it's"),
    *("x" * 255, " a", "a ", "a  b", "", "\u00a0", "x" * 256, "a\nb", "\x7f", "\u2028", "\ud800"),
    *("\0", None, 5),
]
TRUTHS = [True, False, True, False, None, "true", "FALSE", "yes", 1, {}]
STATUSES = ["flagged", "complete", "notFlagged", "Flagged", None, "", "other", 5]
TIMES = [
    *("1970-01-01T00:00:00", "2026-12-01T09:00:00", "2026-12-01T09:00:00.9999999", "2150-02-28"),
    *("2026-12-01T23:00:00Z", "9999-12-31T23:59:59.0000000", "2112-09-17T23:53:47.9999999"),
    *("1969-12-31T23:59:59", "0001-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "noon", "", 5),
]
ZONES = ["UTC", "UTC", "Pacific Standard Time", "Europe/Berlin", "", None, "Mars", 5]
SINGLE_IDS = [
    *(f"String {NAMED} Job", f"string {NAMED.lower()} job", f"Integer {NAMED} Count"),
    *("String 0x001A", "Integer 0x0036", "Boolean 0x0E01", "String 0x1042", "Binary 0x0071"),
    *("SystemTime 0x3FEF", "Integer 0x3FEB", f"StringArray {NAMED} Tags", "Job", "", None),
]
VALUES = [
    *("7", "IPM.Note", "", None, "0", "2", "2030-01-01T00:00:00Z", "true", "<1@a.test>", "AQ=="),
    *("REPORT.IPM.Note.NDR", "x" * 3000, "a\r\nb", "\ud800", 7, True, [], {}),
]
MULTIPLE_IDS = [f"StringArray {NAMED} Tags", f"IntegerArray {NAMED} Sizes", "String 0x001A", 5]
FIRST_VALUES = {
    "categories": [],
    "importance": "normal",
    "isReadReceiptRequested": False,
    "isDeliveryReceiptRequested": False,
}
# Each PATCH sets a time of sending that may count from now, or has an index made.
REPEATED = ("0x3FEF", "0x3FEB", "0x0071")
EXTENDED = ("singleValueExtendedProperties", "multiValueExtendedProperties")
COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
EXPAND = (
    f"$expand=singleValueExtendedProperties($filter=id eq 'String {NAMED} Job' or "
    f"id eq 'Integer {NAMED} Count' or id eq 'String 0x001A' or id eq 'Integer 0x0036'),"
    f"multiValueExtendedProperties($filter=id eq 'StringArray {NAMED} Tags')"
)


def some(random: Random, pool: list[Any], most: int) -> list[Any]:
    """Return a few values, of which most are from the valid beginning of the pool."""
    return [
        random.choice(pool[: len(pool) // 2 + 1] if random.random() < 0.8 else pool)
        for _ in range(random.randint(0, most))
    ]


def one(random: Random, pool: list[Any]) -> Any:
    return (some(random, pool, 3) or pool)[0]


def date(random: Random) -> Any:
    made = {"dateTime": one(random, TIMES), "timeZone": one(random, ZONES)}
    return random.choice([made, made, made, made, None, {}, "2026-12-01", {"timeZone": "UTC"}])


def flag(random: Random) -> Any:
    names = ["startDateTime", "dueDateTime", "completedDateTime"]
    dates = {name: date(random) for name in random.sample(names, random.choice([0, 1, 2, 2, 3]))}
    if dates.keys() >= {"startDateTime", "dueDateTime"} and random.random() < 0.5:
        dates["startDateTime"] = dates["dueDateTime"]
    made = {"flagStatus": one(random, STATUSES), **dates}
    return random.choice([made, made, made, made, dates, None, [], "flagged"])


def change(random: Random) -> dict[str, Any]:
    """Return the body of a PATCH, mostly a valid one."""
    every: dict[str, Any] = {
        "categories": random.choice([some(random, TEXTS, 3)] * 5 + [None, "Done", ["c"] * 101]),
        "importance": one(random, ["low", "normal", "high", "High", None, "", "urgent", 5]),
        "flag": flag(random),
        "inferenceClassification": one(random, ["other", "focused", "Other", None, "", "x"]),
        "singleValueExtendedProperties": [
            {"id": one(random, SINGLE_IDS), "value": one(random, VALUES)}
            for _ in range(random.randint(0, 2))
        ],
        "multiValueExtendedProperties": [
            {"id": one(random, MULTIPLE_IDS), "value": random.choice([["a", "b"], [], None, ["1"]])}
        ],
        **{
            name: one(random, TRUTHS)
            for name in ("isRead", "isReadReceiptRequested", "isDeliveryReceiptRequested")
        },
    }
    names = random.sample(list(every), random.choice([1, 1, 1, 2, 3]))
    return {name: every[name] for name in names}


class Mailbox:
    """The messages of a mailbox, each as a GET returned it last."""

    def __init__(self, on_disk: OnDisk, random: Random) -> None:
        self.http, self.root, self.random = on_disk.http, on_disk.root, random
        self.shown: dict[str, dict[str, Any]] = {}
        self.links: dict[str, str] = {}
        self.changed: set[str] = set()

    async def fill(self) -> None:
        await self.http.get("/mailFolders")
        for number in range(3):
            file = self.root / f"example.test/alice/new/160000000{number}.M1.h"
            file.write_bytes(MIME % number)
        received = (await self.http.get("/mailFolders/inbox/messages")).json()["value"]
        move = {"destinationId": "drafts"}
        assert (await self.http.post(f"/messages/{received[0]['id']}/move", json=move)).is_success
        draft = {"subject": "s", "toRecipients": to("bob@a.test"), "categories": ["File"]}
        assert (await self.http.post("/messages", json=draft)).is_success
        for message in (await self.http.get("/messages")).json()["value"]:
            self.shown[message["id"]] = await self.get(message["id"])
        for folder in ("inbox", "drafts"):
            self.links[folder] = f"/mailFolders/{folder}/messages/delta"
        await self.check_delta()

    async def get(self, message_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/messages/{message_id}?{EXPAND}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def patch(self, message_id: str, body: dict[str, Any]) -> httpx.Response:
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return await self.http.patch(f"/messages/{message_id}", content=content, headers=headers)

    async def change_one(self) -> int:
        """PATCH a message and check the answer; return its status."""
        message_id = self.random.choice(list(self.shown))
        before, body = self.shown[message_id], change(self.random)
        answer = await self.patch(message_id, body)
        after = self.shown[message_id] = await self.get(message_id)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, (body, answer.text)
            assert after == before, body
            return answer.status_code
        # When a received message was written again as a draft is by the system's clock.
        ignored = "receivedDateTime" if after["isDraft"] else ""
        answered, expected = ({**answer.json(), ignored: 0}, {**after, ignored: 0})
        assert answered == {name: expected[name] for name in expected if name not in EXTENDED}, body
        for name, missing in FIRST_VALUES.items():
            if name in body:
                wanted = missing if body[name] is None else body[name]
                if name == "categories":
                    wanted = [text.strip() for text in wanted if text and text.strip()]
                assert str(after[name]).lower() == str(wanted).lower(), body
        if after["changeKey"] != before["changeKey"]:
            self.changed.add(message_id)
        else:
            assert after == before, body
        for again in (body, after):
            if not any(effect in str(again) for effect in REPEATED):
                answer = await self.patch(message_id, again)
                assert answer.status_code == 200, (again, answer.text)
                assert answer.json()["changeKey"] == after["changeKey"], again
        return 200

    async def check_filters(self) -> None:
        """Compare what $filter finds with what the messages show."""
        due = {
            key: value["flag"].get("dueDateTime", {}).get("dateTime", "")[:19]
            for key, value in self.shown.items()
        }
        at = self.random.choice([*filter(None, due.values()), "2026-12-01T09:00:00"])
        expected = {
            f"flag/dueDateTime/dateTime {word} '{at}Z'": {
                key for key, value in due.items() if (holds(value, at) if value else word == "ne")
            }
            for word, holds in COMPARISONS.items()
        }
        expected["flag/dueDateTime/dateTime eq null"] = {one for one in due if not due[one]}
        for name, values in {
            "importance": ("low", "normal", "high"),
            "inferenceClassification": ("focused", "other"),
            "flag/flagStatus": ("notFlagged", "flagged", "complete"),
        }.items():
            for value in values:
                expected[f"{name} eq '{value}'"] = {
                    key
                    for key, shown in self.shown.items()
                    if (shown["flag"]["flagStatus"] if "/" in name else shown[name]) == value
                }
        for text in {text for shown in self.shown.values() for text in shown["categories"]}:
            quoted = text.replace("'", "''")
            expected[f"categories/any(c:c eq '{quoted}')"] = {
                key
                for key, shown in self.shown.items()
                if text.casefold()[:255] in [one.casefold()[:255] for one in shown["categories"]]
            }
        for condition, wanted in expected.items():
            answer = await self.http.get(
                "/messages", params={"$filter": condition, "$select": "id"}
            )
            found = {message["id"] for message in answer.json()["value"]}
            assert found == wanted, condition

    async def check_delta(self) -> None:
        """Check that delta returns each message that was changed, as it is shown now."""
        found = {}
        for folder, link in self.links.items():
            page = (await self.http.get(link)).json()
            assert "@odata.deltaLink" in page
            self.links[folder] = page["@odata.deltaLink"].partition("/me")[2]
            found |= {message["id"]: message for message in page["value"]}
        assert found.keys() >= self.changed
        for message_id, message in found.items():
            shown = self.shown[message_id]
            assert {name: shown[name] for name in message if name in shown} == message
        self.changed.clear()


@pytest.mark.parametrize("seed", sampled(range(3)))
async def test_any_patch_is_what_get_filter_and_delta_return(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    async with graph_on_disk(tmp_path / "mail", accounts=DevelopmentAccounts()) as on_disk:
        mailbox = Mailbox(on_disk, random)
        await mailbox.fill()
        statuses = []
        for number in range(50):
            statuses.append(await mailbox.change_one())
            if number % 10 == 0:
                await mailbox.check_filters()
                await mailbox.check_delta()
        assert 15 < statuses.count(200) < 45
