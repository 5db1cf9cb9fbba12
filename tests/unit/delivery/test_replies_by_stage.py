"""Each stage, each reply, one recipient and several: the outcomes of docs/next-hops.md, by SMTP and LMTP."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from tests.support.remote_mx import DROP, RemoteMx

# stage, reply, outcome and status of each recipient
SCRIPTS = [
    ("CONNECT", "450 4.3.2 busy", "deferred", "4.3.2"),
    ("CONNECT", "554 5.3.2 no mail here", "failed", "5.3.2"),
    ("CONNECT", "521 never", "failed", "5.3.2"),
    ("CONNECT", DROP, "deferred", "4.4.2"),
    ("HELLO", "451 4.3.0 later", "deferred", "4.3.0"),
    ("HELLO", "550 5.7.1 not you", "deferred", "4.7.1"),  # of HELO, too
    ("MAIL", "451 4.3.0 later", "deferred", "4.3.0"),
    ("MAIL", "552 too big", "failed", "5.3.4"),
    ("MAIL", "421 4.3.2 going", "deferred", "4.3.2"),
    ("MAIL", "354 go ahead", "deferred", "4.5.0"),
    ("MAIL", DROP, "deferred", "4.4.2"),
    ("RCPT", "450 4.2.0 greylisted", "deferred", "4.2.0"),
    ("RCPT", "452 4.2.2 quota", "deferred", "4.2.2"),
    ("RCPT", "550 who", "failed", "5.1.1"),
    ("RCPT", "421 4.3.2 going", "deferred", "4.3.2"),
    ("RCPT", DROP, "deferred", "4.4.2"),
    ("DATA", "451 later", "deferred", "4.3.0"),
    ("DATA", "554 no", "failed", "5.7.1"),
    ("DATA", "250 ok", "deferred", "4.5.0"),
    ("DATA", "421 4.3.2 going", "deferred", "4.3.2"),
    ("DATA", DROP, "deferred", "4.4.2"),
    ("DOT", "250 2.6.0 queued", "accepted", "2.6.0"),
    ("DOT", "452 disk", "deferred", "4.3.1"),
    ("DOT", "550 5.7.1 spam", "failed", "5.7.1"),
    ("DOT", "354 go ahead", "indeterminate", "4.5.0"),
    ("DOT", DROP, "indeterminate", "4.4.2"),
    ("QUIT", "550 5.0.0 stay", "accepted", "2.0.0"),
]


@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
@pytest.mark.parametrize("count", [1, 20])
async def test_each_stage_and_reply_has_its_outcome_for_each_recipient(delivery, lmtp, count):
    accepted = "delivered" if lmtp else "relayed"
    hello = ("LHLO",) if lmtp else ("EHLO", "HELO")
    delivery.retry_s = (600.0,)
    ids = []
    async with AsyncExitStack() as hosts:
        for number, (stage, reply, _, _) in enumerate(SCRIPTS):
            replies = dict.fromkeys(hello if stage == "HELLO" else (stage,), reply)
            mx = await hosts.enter_async_context(RemoteMx(replies=replies, lmtp=lmtp))
            delivery.table.at(f"d{number}.test", mx)
        await delivery.start()
        for number in range(len(SCRIPTS)):
            people = [f"u{one}@d{number}.test" for one in range(count)]
            ids.append(await delivery.send(*people))
        found = [await first_attempts(delivery, queue_id) for queue_id in ids]
    expected = [
        [(accepted if outcome == "accepted" else outcome, status)] * count
        for *_, outcome, status in SCRIPTS
    ]
    wrong = {
        script[:2]: (got, wanted)
        for script, got, wanted in zip(SCRIPTS, found, expected, strict=True)
        if got != wanted
    }
    assert wrong == {}


async def first_attempts(delivery, queue_id: str) -> list[tuple[str, str]]:
    """Outcome and status of each recipient's first attempt, once all have one."""
    async with asyncio.timeout(120):
        while True:
            journey = await delivery.spool.journey(queue_id)
            attempts = [one.attempts for one in journey.recipients]
            if all(attempts):
                return [(each[0].outcome, each[0].status) for each in attempts]
            await delivery.changed.get()


SMALL, UTF8 = ["SIZE 9"], ["SMTPUTF8", "8BITMIME"]
# what the first host offers, what the next one offers and replies, outcome and status
LACKING = [
    (SMALL, UTF8, {}, "relayed", "2.0.0"),
    (["8BITMIME"], UTF8, {}, "relayed", "2.0.0"),
    (SMALL, SMALL, {}, "failed", "5.3.4"),
    (["8BITMIME"], ["SIZE"], {}, "failed", "5.6.7"),
    (SMALL, UTF8, {"CONNECT": DROP}, "deferred", "4.4.2"),
    (SMALL, UTF8, {"RCPT": "450 4.2.0 greylisted"}, "deferred", "4.2.0"),
    (SMALL, UTF8, {"RCPT": "550 who"}, "failed", "5.1.1"),
    (SMALL, UTF8, {"CONNECT": "554 5.3.2 no mail here"}, "failed", "5.3.2"),
]


async def test_what_one_host_lacks_the_next_one_is_asked_for(delivery):
    """By SIZE and SMTPUTF8; other mail, and recipients in ASCII, still begin with the best host."""
    delivery.retry_s = (600.0,)
    pairs, ids = [], []
    async with AsyncExitStack() as stack:
        for number, (first, second, replies, *_) in enumerate(LACKING):
            hosts = RemoteMx(extensions=first), RemoteMx(extensions=second, replies=replies)
            pairs.append([await stack.enter_async_context(host) for host in hosts])
            delivery.table.at(f"d{number}.test", *pairs[-1])
        await delivery.start()
        for number, (first, *_) in enumerate(LACKING):
            names = "üu" if first != SMALL else "u"
            ids.append(await delivery.send(*(f"{name}@d{number}.test" for name in names)))
        found = [await first_attempts(delivery, queue_id) for queue_id in ids]
        await delivery.done(await delivery.send("plain@d1.test"))
    assert [each[0] for each in found] == [row[-2:] for row in LACKING]
    assert [len(first.envelopes) for first, _ in pairs] == [0, 2, 0, 1, 0, 0, 0, 0]
    assert all(second.sessions for _, second in pairs)
