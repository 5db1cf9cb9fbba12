"""Reports that came in: joined to the message that they are about, with their own delivery."""

import msgspec
import pytest

from relay.base.message.envelope import ForwardPath, Notify
from relay.base.message.outcome import Delivered, Evidence, Relayed
from relay.formats.read_report import RemoteClaim, RemoteReport
from relay.store.journeys.journey import join
from relay.store.spool.types import ClaimResult, NewEntry, NewRecipient
from tests.support.operator import without_node
from tests.support.spools import changed_message

ALICE = "alice@example.test"
SENT = Relayed(Evidence("2.0.0", "250 2.0.0 ok", "mx.a.test", remote=True))
COPIED = Delivered(Evidence("2.1.5", "250 2.1.5 ok", graph_id="l1"))
GONE = RemoteClaim("", "x@a.test", "failure", "5.1.1", "550 5.1.1 no such user", "mx2.a.test")


def report(*claims: RemoteClaim, envid: str = "", message_id: str = "<m@x>") -> RemoteReport:
    return RemoteReport(envid, message_id, "mx.a.test", claims or (GONE,))


@pytest.fixture
def send(spool, make):
    """Send a message that every next hop accepts; return its queue id."""

    async def send(hops=None, **changes) -> str:
        facts = {"message_id": "<m@x>", "submission_id": "d1.1", "envid": "d1.1"} | changes
        accepted = await spool.accept(make(hops, **facts))
        for claim in accepted.claims:
            await spool.record(ClaimResult(claim, 5, {one.id: SENT for one in claim.recipients}))
        return accepted.queue_id

    return send


@pytest.fixture
def deliver(spool, make):
    """Deliver a report to a mailbox here; return the result, and whether it was in time."""

    async def deliver(what: RemoteReport, to: str = ALICE) -> tuple[ClaimResult, bool]:
        carrier = make(
            {"local": [to]},
            reverse_path="",
            account="",
            trusted=False,
            client="mx.a.test [192.0.2.7]",
        )
        (claim,) = (await spool.accept(carrier)).claims
        claim_result = ClaimResult(claim, 9, {1: COPIED}, remote_report=(what, (to,)))
        return claim_result, (await spool.record(claim_result))[0]

    return deliver


async def claims(spool, queue_id: str) -> list[dict]:
    journey = await spool.journey(queue_id)
    return [one.detail for one in journey.steps if one.step == 7]


async def test_a_report_is_an_event_of_its_original_and_changes_nothing_else(
    spool, send, deliver
) -> None:
    queue_id = await send({"mx:a.test": ["x@a.test", "y@a.test"]})
    before = await spool.journey(queue_id)
    claim_result, in_time = await deliver(report(envid="d1.1"))
    assert in_time
    after = await spool.journey(queue_id)
    assert (after.state, after.recipients) == (before.state, before.recipients)
    assert after.steps[: len(before.steps)] == before.steps
    (event,) = after.steps[len(before.steps) :]
    assert (event.step, event.at[:19]) == (7, "1970-01-01T00:00:00")
    received = claim_result.claim.message.id
    assert without_node(event.detail) == {
        "by": "remote",
        "kind": "failure",
        "recipients": ["x@a.test"],
        "status": "5.1.1",
        "reply": "550 5.1.1 no such user",
        "host": "mx2.a.test",
        "received": received,
        "source": {"client": "192.0.2.7", "reporting_mta": "mx.a.test"},
    }
    assert (await spool.counts()).unaccounted == 0
    first, second = join(None, after).recipients
    assert msgspec.to_builtins(first.reported) == {
        "kind": "failure",
        "status": "5.1.1",
        "reply": "550 5.1.1 no such user",
        "host": "mx2.a.test",
        "at": event.at,
        "by": "remote",
        "source": {"client": "192.0.2.7", "reporting_mta": "mx.a.test"},
    }
    assert second.reported is None


HOSTS = "0100018f-4711-000000"


@pytest.mark.parametrize(
    ("reply", "to", "message_id", "joined"),
    [
        (f"250 Ok {HOSTS}", "x@a.test", f"<{HOSTS}@eu-west-1.amazonses.com>", 1),
        (f"250 2.0.0 Ok: queued as {HOSTS}", "x@a.test", f"<{HOSTS}@eu.test>", 1),
        (f"250 2.6.0 <{HOSTS}@host.test> taken", "x@a.test", f"<{HOSTS}@host.test>", 1),
        (f"250 Ok {HOSTS}", "x@a.test", f"<{HOSTS}.2@eu-west-1.amazonses.com>", 0),
        (f"250 Ok {HOSTS}", "y@b.test", f"<{HOSTS}@eu-west-1.amazonses.com>", 0),
        ("250 2.0.0 Ok: queued as 4bXyZ1", "x@a.test", "<4bXyZ1@host.test>", 0),
        (f"250 2.1.5 recipient {HOSTS} fine", "x@a.test", f"<{HOSTS}@eu.test>", 0),
    ],
)
async def test_the_id_of_the_host_that_accepted_leads_to_its_recipients(
    spool, make, deliver, reply, to, message_id, joined
) -> None:
    accepted = await spool.accept(make({"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]}))
    taken = Relayed(Evidence("2.0.0", reply, "mx.a.test", remote=True))
    for claim in accepted.claims:
        outcome = taken if claim.next_hop.host == "a.test" else SENT
        await spool.record(ClaimResult(claim, 5, {one.id: outcome for one in claim.recipients}))
    claim = RemoteClaim("", to, "failure", "5.1.1", "550 5.1.1 no such user", "mx2.a.test")
    await deliver(report(claim, message_id=message_id))
    assert len(await claims(spool, accepted.queue_id)) == joined
    await deliver(report(claim, message_id=message_id), to="other@example.test")
    assert len(await claims(spool, accepted.queue_id)) == joined


CLIENTS = {"submission_id": "", "envid": "QQ 314+159"}  # decoded, as the spool has it


@pytest.mark.parametrize(
    ("known", "what"),
    [
        ({}, report(envid="d1.1", message_id="")),
        ({}, report(envid="d1.1", message_id="<other@x>")),
        ({}, report()),
        ({}, report(RemoteClaim("X@A.test", "moved@b.test", "delayed"))),
        ({}, report(RemoteClaim("unknown@b.test", "x@A.TEST", "relayed"))),
        ({}, report(RemoteClaim("nobody@a.test", "", "failure"), GONE)),
        ({}, report(RemoteClaim("", "x@a.test", "read"))),
        (CLIENTS, report(envid="QQ 314+159", message_id="")),
        (CLIENTS, report(envid="QQ 314+159")),
        (CLIENTS | {"message_id": ""}, report(envid="QQ 314+159", message_id="<given-later@b>")),
    ],
)
async def test_what_names_the_message_and_a_recipient_is_joined(
    spool, send, deliver, known, what
) -> None:
    queue_id = await send(**known)
    await deliver(what, to="Alice@EXAMPLE.test")
    (found,) = await claims(spool, queue_id)
    assert (found["recipients"], found["kind"]) == (["x@a.test"], what.claims[-1].kind)


@pytest.mark.parametrize(
    "what",
    [
        report(RemoteClaim("", "z@a.test", "failure")),
        report(message_id="<other@x>"),
        report(message_id=""),
        report(envid="d2.1", message_id="<other@x>"),
        report(envid="d2.1"),
        report(envid="someone-else"),
        report(RemoteClaim("", "hidden@a.test", "failure")),
    ],
)
async def test_a_report_on_another_message_or_recipient_changes_nothing(
    spool, make, send, deliver, what
) -> None:
    hidden = NewRecipient(
        ForwardPath("hidden@a.test", frozenset({Notify.NEVER})), added_by="journal"
    )
    message = make(message_id="<m@x>", submission_id="d1.1", envid="d1.1")
    entry = message.entries[0]
    both = NewEntry(entry.next_hop, (*entry.recipients, hidden))
    message = changed_message(message, entries=(both,))
    await spool.accept(message, claim=False)
    other = await send(
        {"mx:b.test": ["y@b.test"]}, message_id="<o@x>", submission_id="d2.1", envid="d2.1"
    )
    await deliver(what)
    assert await claims(spool, message.facts.id) == await claims(spool, other) == []


@pytest.mark.parametrize("to", ["bob@example.test", "alice+tag@example.test"])
async def test_a_report_that_another_address_got_changes_nothing(
    spool, send, deliver, to: str
) -> None:
    queue_id = await send()
    null_sender = await send(reverse_path="", submission_id="", envid="")
    await deliver(report(), to=to)
    assert await claims(spool, queue_id) == await claims(spool, null_sender) == []


async def test_of_several_with_one_message_id_the_one_with_the_recipient_is_meant(
    spool, send, deliver
) -> None:
    mine = await send(submission_id="", envid="")
    newer = [
        await send({"mx:b.test": [f"y{number}@b.test"]}, submission_id="", envid="")
        for number in range(3)
    ]
    await deliver(report())
    assert len(await claims(spool, mine)) == 1
    assert [await claims(spool, one) for one in newer] == [[], [], []]


async def test_an_orcpt_names_the_recipient(spool, make, deliver) -> None:
    path = ForwardPath("x@a.test", orcpt="rfc822;list@example.test")
    message = make(message_id="<m@x>")
    entry = NewEntry(message.entries[0].next_hop, (NewRecipient(path),))
    await spool.accept(changed_message(message, entries=(entry,)), claim=False)
    await deliver(report(RemoteClaim("list@example.test", "z@elsewhere.test", "failure")))
    assert [one["recipients"] for one in await claims(spool, message.facts.id)] == [["x@a.test"]]


async def test_twenty_claims_of_a_recipient_are_kept_and_the_rest_counted(
    spool, send, deliver
) -> None:
    queue_id = await send({"mx:a.test": ["x@a.test", "y@a.test"]})
    for _ in range(23):
        await deliver(report())
    await deliver(report(RemoteClaim("", "y@a.test", "delayed")))
    found = [one for one in await claims(spool, queue_id) if one["recipients"] == ["x@a.test"]]
    assert [one.get("more", 0) for one in found] == [0] * 19 + [3]
    assert len(await claims(spool, queue_id)) == 21


@pytest.mark.parametrize(
    ("known", "what", "to"),
    [
        ({}, report(envid="qq 314+159", message_id=""), ALICE),
        ({}, report(envid="QQ+20314+2B159", message_id=""), ALICE),
        ({}, report(envid="QQ 314+159", message_id="<other@x>"), ALICE),
        (
            {},
            report(RemoteClaim("", "z@a.test", "failure"), envid="QQ 314+159", message_id=""),
            ALICE,
        ),
        ({}, report(envid="QQ 314+159", message_id=""), "bob@example.test"),
        ({"reverse_path": ""}, report(envid="QQ 314+159", message_id=""), ALICE),
        ({"trusted": False}, report(envid="QQ 314+159", message_id=""), ALICE),
    ],
)
async def test_an_envid_proves_no_more_than_a_message_id(
    spool, send, deliver, known, what, to
) -> None:
    queue_id = await send(**CLIENTS | known)
    await deliver(what, to=to)
    assert await claims(spool, queue_id) == []


async def test_of_several_with_one_envid_the_newest_with_the_recipient_is_meant(
    spool, send, deliver
) -> None:
    sent = [await send(**CLIENTS, message_id=f"<{number}@x>") for number in range(3)]
    sent.append(await send({"mx:b.test": ["y@b.test"]}, **CLIENTS))
    sent.append(await send(**CLIENTS, reverse_path="bob@example.test"))
    await deliver(report(envid=CLIENTS["envid"], message_id=""))
    assert [len(await claims(spool, one)) for one in sent] == [0, 0, 1, 0, 0]
    await deliver(report(envid=CLIENTS["envid"], message_id="<0@x>"))
    assert [len(await claims(spool, one)) for one in sent] == [1, 0, 1, 0, 0]
