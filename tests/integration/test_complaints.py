"""Complaints that come to a real relay: whose mailbox gets them decides, and who hears of them."""

from pathlib import Path

from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess
from tests.support.webhooks import WebhookReceiver, hook

BOB = "bob@example.test"
SHAPES = Path(__file__).parents[1] / "unit/formats/complaints"


def types_in(events: list[dict]) -> list[str]:
    return [one["detail"].get("type") for one in events if one["step"] == 7]


def complain(relay: RelayProcess, shape: str, to: str, sender: str = "fbl@provider.example") -> str:
    """Deliver a report of a stranger; return its queue id."""
    content = (SHAPES / f"{shape}.eml").read_bytes().replace(b"\n", b"\r\n")
    content = content.replace(b"ann@provider.example", b"Bob@Example.test")
    queue_id = relay.submit(sender, [to], content, source="127.0.0.2")
    assert relay.until_final(queue_id)["state"] == "delivered"
    return queue_id


def test_complaints_are_shown_listed_counted_and_posted(serve) -> None:
    """To the sender, by an alias or a tag too, and to the address of all complaints; nobody else."""
    erin = "erin@example.test"
    people = [account("erin", aliases=["news@example.test"]), account("abuse")]
    with WebhookReceiver() as receiver:
        hooks = [hook(receiver, "/complaint", events=["complaint"]), hook(receiver, "/all")]
        reports = {"complaints": "Abuse@example.test"}
        relay = serve(config={"webhook": hooks, "reports": reports}, accounts=people)
        ids = [
            relay.submit(who, [BOB], b"Message-ID: <m%d@shop.example>\r\n\r\n" % number)
            for number, who in ((1, erin), (2, BOB), (10, erin), (14, erin))
        ]
        for one in ids:
            relay.until_final(one)
        complain(relay, "yahoo", BOB)  # who is not the sender
        row = complain(relay, "yahoo", "news@example.test")
        complain(relay, "aol-redacted", "abuse@example.test")
        complain(relay, "not-spam", "erin+fbl@example.test")
        complain(relay, "linkedin-dmarc", erin, sender="")
        found = [relay.cli_json("trace", one) for one in ids]
        rows = [step["detail"] for each in found for step in each["steps"] if step["step"] == 7]
        assert [one["type"] for one in rows] == ["abuse", "abuse", "not-spam", "auth-failure"]
        assert [one.get("recipients") for one in rows] == [[BOB], None, None, [BOB]]
        source = {"client": "127.0.0.2", "reporting_mta": "Yahoo!-Mail-Feedback/2.0"}
        expected = {"kind": "complaint", "type": "abuse", "source": source, "received": row}
        assert expected.items() <= rows[0].items()
        assert relay.metric("relay_complaints_total", type="abuse") == 2
        assert all(to["reported"] is None for each in found for to in each["recipients"])
        receiver.until(lambda found: len(types_in(found)) == 4)
        relay.stop()
        assert types_in(receiver.events) == ["abuse"] * 4
    relay.start()
    assert [one["id"] for one in relay.cli_json("log", "--complaints")] == ids[1::-1]
    [group] = relay.cli_json("stats", "--bounces")
    assert (group["domain"], group["complaints"]) == ("example.test", 2)
    assert group["complaints_percent"] == round(200 / group["delivered"], 3)
    _, columns, cells = relay.cli("stats", "--bounces").stdout.splitlines()
    assert columns.split()[-2:] == ["COMPLAINTS", "PERCENT"]
    assert cells.split()[-2:] == ["2", str(group["complaints_percent"])]
    assert "feedback report of Yahoo" in relay.cli("trace", ids[0]).stdout
    assert relay.faults() == []
