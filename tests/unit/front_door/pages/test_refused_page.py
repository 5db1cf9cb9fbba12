"""The page of what was refused, and its tab in the list of messages."""

import re
from html import unescape

from relay.base.clock import SystemClock, rfc3339
from relay.transport.refusals.refusal import Refusal, RefusalReason


def record(pages, **facts):
    given = {
        "at": rfc3339(SystemClock().time_us()),  # what is older than history is not kept
        "reply": "550 5.1.1 unknown",
        "client": "192.0.2.1",
    }
    pages.relay.daemon.base.refusals.record(
        Refusal(**({"reason": RefusalReason.RECIPIENT} | given | facts))
    )


async def test_values_of_clients_are_escaped(pages):
    hostile = '<script>alert("1")</script>'
    record(
        pages,
        client=hostile,
        account=hostile,
        sender=hostile,
        recipients=(hostile,) * 4,
        subject=hostile,
        recipient_count=9,
        command="RCPT",
        reply=hostile,
        rule=hostile,
        times=3,
    )
    for path in ("/refused", "/", f"/refused?address={hostile}"):
        text = await pages.text(path)
        assert hostile not in text
    text = unescape(await pages.text("/refused"))
    assert text.count(hostile) == 9  # three of the recipients
    assert '<span class="more">+6</span>' in text
    assert '<span class="more">3 times</span>' in text


async def test_refusals_are_found_by_address_and_paged(pages):
    for number in range(120):
        record(pages, sender=f"app{number}@example.test", command="MAIL")
    senders = re.compile(r"app\d+@example.test").findall
    seen, path = [], "/refused"
    while path:
        text = await pages.text(path)
        rows = senders(text)
        assert len(rows) <= 50
        seen += rows
        older = re.search(r'<a rel="next" href="([^"]+)"', text)
        path = older and f"/{unescape(older[1])}"
    assert seen == [f"app{number}@example.test" for number in reversed(range(120))]
    assert (
        senders(await pages.text("/refused?address=APP7@example.test"))[-1] == "app7@example.test"
    )
    assert "Nothing was refused from or to" in await pages.text(
        "/refused?address=nobody@example.test"
    )
    assert (await pages.get("/refused?before=nonsense&more=1")).status_code == 200
    assert (await pages.post("/refused", {})).status_code == 405
