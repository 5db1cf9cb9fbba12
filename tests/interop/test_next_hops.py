"""Postfix and Exim as next hops: what they accept, refuse and put off, as Relay records it."""

from collections.abc import Iterator

import pytest

from tests.support.exim import Exim, NoEximError
from tests.support.postfix import NoPostfixError, Postfix
from tests.support.relay_process import until

PEOPLE = ["carol", "dave", "erin", "frank"]
DOMAIN = "hop.test"


def postfix() -> Postfix:
    """A Postfix with a full mailbox, that takes two recipients at once."""
    full = f"check_recipient_access inline:{{ {{full@{DOMAIN} = 452 4.2.2 mailbox full}} }}"
    settings = {
        "smtpd_recipient_restrictions": f"{full}, reject_unlisted_recipient",
        "smtpd_recipient_limit": "2",
    }
    return Postfix(domain=DOMAIN, people=PEOPLE, settings=settings)


def exim() -> Exim:
    """An Exim that counts refused recipients as well."""
    return Exim(domain=DOMAIN, people=PEOPLE, recipients_max=4)


@pytest.fixture(params=[postfix, exim])
def host(request: pytest.FixtureRequest) -> Iterator[Postfix | Exim]:
    try:
        with request.param() as started:
            yield started
    except (NoPostfixError, NoEximError) as why:
        pytest.skip(str(why))


def test_each_recipient_has_the_outcome_of_its_own_reply(host: Postfix | Exim, serve) -> None:
    """Delivered, refused (550), over quota (452 4.2.2); and more recipients than the host takes at
    once, which are sent in further transactions of the same attempt (452 4.5.3, or 452 alone).
    """
    route = {"domain": DOMAIN, "next_hop": f"smtp://127.0.0.1:{host.port}", "name": "to the host"}
    config = {"route": [route], "delivery": {"retry": ["1h"]}}
    relay = serve(config=config)
    names = ["carol", "nobody", "full", "dave", "erin", "frank"]
    sent = relay.submit("alice@example.test", [f"{name}@{DOMAIN}" for name in names])
    relay.until_state(sent, "deferred")
    until("all have their outcome", lambda: "queued" not in relay.states(sent).values())
    journey = relay.journey(sent)
    found = {
        one["address"].partition("@")[0]: (one["state"], one["status"], len(one["attempts"]))
        for one in journey["recipients"]
    }
    status = found["carol"][1]
    assert status in ("2.0.0", "2.1.5")
    assert found == dict.fromkeys(PEOPLE, ("relayed", status, 1)) | {
        "nobody": ("failed", "5.1.1", 1),
        "full": ("deferred", "4.2.2", 1),
    }
    replies = {one["address"].partition("@")[0]: one["reply"] for one in journey["recipients"]}
    assert replies["nobody"].startswith("550 5.1.1 ")
    assert replies["full"].startswith("452 4.2.2 ")
    assert "mailbox full" in replies["full"]
    attempts = [one["attempts"][0] for one in journey["recipients"]]
    assert {one["host"] for one in attempts} == {"127.0.0.1"}
    assert all(one["durations"]["total"] > 0 for one in attempts)
    [hop] = relay.cli_json("queue", "stats")["next_hops"]
    assert (hop["route"], hop["last"]["domain"]) == ("to the host", DOMAIN)
    until("everybody has it", lambda: all(map(host.mail, PEOPLE)))
    assert [len(host.mail(name)) for name in PEOPLE] == [1, 1, 1, 1]
    assert [len(host.mail(name)) for name in ("nobody", "full")] == [0, 0]
