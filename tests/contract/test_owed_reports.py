"""Reports that wait: of successes, for the end of an attempt; of a delay, once for a message."""

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import ForwardPath, Notify, Source
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.store.spool.types import ClaimResult, DueQuery, EntrySchedule, Selector
from tests.support.operator import ALL, command

SUCCESS = frozenset({Notify.SUCCESS})
OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok", host="mx.a.test", remote=True))
LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later", host="mx.a.test"), DeferralClass.RECIPIENT)
NOW = 10**18  # after the due time of every entry in these tests


def asking(message):
    """The message, with NOTIFY=SUCCESS for each recipient."""
    (entry,) = message.entries
    recipients = tuple(
        replace(one, path=ForwardPath(one.path.address, SUCCESS, f"rfc822;{one.path.address}"))
        for one in entry.recipients
    )
    return replace(message, entries=(replace(entry, recipients=recipients),))


async def test_what_is_owed_is_in_each_claim_until_it_is_paid(spool, restart, make) -> None:
    message = asking(make({"mx:a.test": ["1@a.test", "2@a.test", "3@a.test"]}))
    (claim,) = (await spool.accept(message)).claims
    assert claim.owed == ()
    part = ClaimResult(claim, 77, {1: OK, 2: OK}, goes_on=True, owed=[1, 2])
    assert (await spool.record(part))[0]
    spool = await restart(frees=1)
    (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert [one.id for one in claim.recipients] == [3]
    assert [(one.path.address, one.evidence, one.last_attempt_us) for one in claim.owed] == [
        ("1@a.test", OK.evidence, 77),
        ("2@a.test", OK.evidence, 77),
    ]
    assert claim.owed[0].path == message.entries[0].recipients[0].path
    assert claim.owed[0].log_id == f"{claim.message.id}-1"
    waiting = EntrySchedule(retry_us=5, due_us=5)
    await spool.record(ClaimResult(claim, 78, {3: LATER}, waiting, pays=True))
    (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert ([one.id for one in claim.recipients], claim.owed) == ([3], ())


@pytest.mark.parametrize("how", ["cancel", "cancel --bounce", "no reports", "cancel of another"])
async def test_a_cancel_of_the_rest_pays_what_is_owed(
    spool, restart, make, reporter, how: str
) -> None:
    message = asking(make({"mx:a.test": ["1@a.test", "2@a.test", "3@a.test"]}))
    (claim,) = (await spool.accept(message)).claims
    await spool.record(ClaimResult(claim, 77, {1: OK, 2: OK}, goes_on=True, owed=[1, 2]))
    other = make({"mx:a.test": ["4@a.test"]})
    await spool.accept(other, claim=False)
    spool = await restart()
    if how != "no reports":
        spool.queue_admin.reports.writer = reporter
    selector = Selector(ids=(other.facts.id,)) if how == "cancel of another" else ALL
    bounce = how == "cancel --bounce"
    answer = await spool.queue_admin.execute(command("cancel", selector, bounce=bounce))
    assert answer.as_json()["done"] == (1 if how == "cancel of another" else 2)
    assert answer.as_json()["in_flight"] == 0

    claims = (await spool.claim_due(NOW, 9, DueQuery())).claims
    made = [one for one in claims if one.message.source is Source.REPORT]
    reports = [await spool.read_content(one.content_id) for one in made]
    relayed = [one for one in reports if b"Action: relayed" in one]
    steps = (await spool.journey(message.facts.id)).steps
    named = [one.detail["recipients"] for one in steps if one.detail.get("kind") == "relayed"]
    if how in ("no reports", "cancel of another"):
        assert (reports, named) == ([], [])
        assert [len(one.owed) for one in claims] == ([2] if how == "cancel of another" else [])
    else:
        (report,) = relayed
        assert report.count(b"Action: relayed") == 2
        assert b"3@a.test" not in report
        assert len(reports) == (2 if bounce else 1)  # of the failure of the other message only
        assert named == [["1@a.test", "2@a.test"]]
    assert (await spool.counts()).unaccounted == 0


async def test_the_delay_of_a_message_has_the_recipients_of_all_waiting_entries(
    spool, make
) -> None:
    hops = {
        "mx:a.test": ["1@a.test"],
        "mx:b.test": ["2@b.test", "3@b.test"],
        "mx:c.test": ["4@c.test"],
        "capture": ["5@d.test"],
    }
    claims = (await spool.accept(make(hops, warn_us=5))).claims
    first, second, third = claims[:3]
    part = ClaimResult(second, 1, {2: OK}, goes_on=True)
    await spool.record(part)
    await spool.record(ClaimResult(third, 1, {4: OK}))
    found = await spool.late_recipients(first.key)
    assert {
        entry: [one.path.address for one in recipients] for entry, recipients in found.items()
    } == {1: ["1@a.test"], 2: ["3@b.test"]}
    waiting = EntrySchedule(retry_us=5, due_us=5)
    await spool.record(ClaimResult(first, 1, {1: LATER}, waiting, ends_warning=True))
    assert await spool.late_recipients(second.key) == {}
    # a claim from before the report does not bring the warning back
    later = EntrySchedule(retry_us=5, due_us=5, warn_us=5)
    await spool.record(ClaimResult(second, 1, {3: LATER}, later))
    again = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert {claim.entry_id: claim.warn_us for claim in again[:2]} == {1: None, 2: None}
    late = await spool.late_recipients(first.key)
    assert late == {}


async def test_a_delay_report_names_what_the_relay_holds_and_nobody_else(spool, make) -> None:
    hops = {f"mx:{name}.test": [f"1@{name}.test"] for name in "abc"}
    claims = (await spool.accept(make(hops, warn_us=5))).claims
    for claim in claims[:2]:  # its content cannot be read
        held = EntrySchedule(retry_us=None, due_us=5, warn_us=5)
        later = dict.fromkeys([one.id for one in claim.recipients], LATER)
        await spool.record(ClaimResult(claim, 1, later, held, held=True))
    await spool.record(ClaimResult(claims[2], 1, {3: LATER}, EntrySchedule(retry_us=9, due_us=5)))
    await spool.queue_admin.execute(command("hold", Selector(ids=(f"{claims[2].message.id}-3",))))
    found = await spool.late_recipients(claims[0].key)
    assert list(found) == [1, 2]


async def test_the_reply_of_the_last_attempt_is_in_the_delay_report(spool, make) -> None:
    claim, other = (
        await spool.accept(make({"mx:a.test": ["1@a.test"], "mx:b.test": ["2@b.test"]}, warn_us=5))
    ).claims
    waiting = EntrySchedule(retry_us=5, due_us=5, warn_us=5)
    await spool.record(ClaimResult(claim, 1, {1: LATER}, waiting))
    found = await spool.late_recipients(other.key)
    assert (found[1][0].status, found[1][0].reply) == ("4.2.0", "450 4.2.0 later")
    assert (found[2][0].status, found[2][0].reply) == ("", "")
