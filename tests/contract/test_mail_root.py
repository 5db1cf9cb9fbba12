"""What a spool knows of the mail root: its id by store, and whether it was ever used."""

from relay.base.message.outcome import Delivered, Evidence
from relay.store.spool import storage
from relay.store.spool.types import ClaimResult, EntrySchedule

DELIVERED = Delivered(Evidence("2.1.5", "250 2.1.5 delivered"))


async def test_the_id_of_each_store_is_kept(spool, restart) -> None:
    assert await spool.mail_root("main") == ("", False)
    assert await spool.record_mail_root("main", "one") == "one"
    assert await spool.record_mail_root("other", "two") == "two"
    assert await spool.record_mail_root("main", "one") == "one"
    assert await spool.record_mail_root("main", "four") == "one"  # there is one
    assert await spool.record_mail_root("main", "four", instead_of="two") == "one"
    assert await spool.record_mail_root("main", "three", instead_of="one") == "three"
    again = await restart()
    found = {store: (await again.mail_root(store))[0] for store in ("main", "other", "third")}
    assert found == {"main": "three", "other": "two", "third": ""}


async def test_a_local_delivery_is_remembered_without_its_history(spool, restart, make) -> None:
    (claim,) = (await spool.accept(make({"local": ["bob@example.test"]}))).claims
    await spool.record(ClaimResult(claim, 5, {1: DELIVERED}, EntrySchedule(None, None)))
    await spool.maintenance.prune_many(0)
    again = await restart()
    found = await again.mail_root("main")
    assert found == ("", True)


async def test_no_store_is_without_the_node_that_holds_it(spool, make, settings) -> None:
    await spool.accept(make({"local": ["bob@example.test"]}), claim=False)
    assert list(spool.maintenance.stores_without_node) == []
    assert list(await spool.maintenance.claim_without_node()) == []
    assert list(storage(settings).warnings()) == []
