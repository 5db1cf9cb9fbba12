"""Reports that wait: of successes, for the end of an attempt; of a delay, once for a message."""

from dataclasses import replace

from relay.message.envelope import ForwardPath, Notify
from relay.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.spool.types import DueQuery, EntrySchedule, Settlement

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


async def test_what_is_owed_is_in_each_claim_until_it_is_paid(open_spool, make) -> None:
    spool = open_spool()
    await spool.start()
    message = asking(make({"mx:a.test": ["1@a.test", "2@a.test", "3@a.test"]}))
    (claim,) = (await spool.accept(message)).claims
    assert claim.owed == ()
    part = Settlement(claim, 77, {1: OK, 2: OK}, goes_on=True, owed=[1, 2])
    assert (await spool.settle(part))[0]
    await spool.stop()  # as a crash: the claim is not settled

    spool = open_spool()
    assert await spool.start() == 1
    (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert [one.id for one in claim.recipients] == [3]
    assert [(one.path.address, one.evidence, one.last_attempt_us) for one in claim.owed] == [
        ("1@a.test", OK.evidence, 77),
        ("2@a.test", OK.evidence, 77),
    ]
    assert claim.owed[0].path == message.entries[0].recipients[0].path
    assert claim.owed[0].log_id == f"{claim.message.id}-1"
    waiting = EntrySchedule(retry_us=5, due_us=5)
    await spool.settle(Settlement(claim, 78, {3: LATER}, waiting, pays=True))
    (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert ([one.id for one in claim.recipients], claim.owed) == ([3], ())
    await spool.stop()


async def test_the_delay_of_a_message_has_the_recipients_of_all_waiting_entries(
    spool, make
) -> None:
    hops = {
        "mx:a.test": ["1@a.test"], "mx:b.test": ["2@b.test", "3@b.test"], "mx:c.test": ["4@c.test"],
        "capture": ["5@d.test"],
    }  # fmt: skip
    claims = (await spool.accept(make(hops, warn_us=5))).claims
    first, second, third = claims[:3]
    part = Settlement(second, 1, {2: OK}, goes_on=True)
    await spool.settle(part)
    await spool.settle(Settlement(third, 1, {4: OK}))
    found = await spool.late_recipients(first.key)
    assert {
        entry: [one.path.address for one in recipients] for entry, recipients in found.items()
    } == {1: ["1@a.test"], 2: ["3@b.test"]}
    waiting = EntrySchedule(retry_us=5, due_us=5)
    await spool.settle(Settlement(first, 1, {1: LATER}, waiting, ends_warning=True))
    assert await spool.late_recipients(second.key) == {}
    # a claim from before the report does not bring the warning back
    later = EntrySchedule(retry_us=5, due_us=5, warn_us=5)
    await spool.settle(Settlement(second, 1, {3: LATER}, later))
    again = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert {claim.entry_id: claim.warn_us for claim in again[:2]} == {1: None, 2: None}
    late = await spool.late_recipients(first.key)
    assert late == {}


async def test_the_reply_of_the_last_attempt_is_in_the_delay_report(spool, make) -> None:
    claim, other = (
        await spool.accept(make({"mx:a.test": ["1@a.test"], "mx:b.test": ["2@b.test"]}, warn_us=5))
    ).claims
    waiting = EntrySchedule(retry_us=5, due_us=5, warn_us=5)
    await spool.settle(Settlement(claim, 1, {1: LATER}, waiting))
    found = await spool.late_recipients(other.key)
    assert (found[1][0].status, found[1][0].reply) == ("4.2.0", "450 4.2.0 later")
    assert (found[2][0].status, found[2][0].reply) == ("", "")
