"""An empty mailbox is removed, and no mail is lost that arrives meanwhile."""

import asyncio
import itertools
from pathlib import Path

from relay.store.mailbox.delivery_store import DeliveryResult

CONTENT = b"Subject: s\r\n\r\nx\r\n"


async def test_mail_that_arrives_meanwhile_makes_the_mailbox_anew(place, store):
    addresses, removed = itertools.cycle(f"a@{number}.test" for number in range(50)), 0

    async def deliver(sender: int) -> None:
        for turn in itertools.takewhile(lambda _: removed < 100, itertools.count()):
            done = await store.deliver(next(addresses), unique=f"{sender}.{turn}", content=CONTENT)
            assert done is DeliveryResult.DELIVERED

    def mailboxes() -> set[Path]:
        return {*place.root.glob("*.test")}

    arriving = asyncio.gather(*map(deliver, range(4)))
    while not arriving.done():
        await store.remove_files(await store.stored_files())
        before = mailboxes()
        await store.remove_empty_mailboxes(lambda _: False)
        removed += len(before - mailboxes())
    await arriving


async def test_it_stays_for_a_query_and_for_what_another_program_has_just_written(
    place, store, monkeypatch
):
    address, index = "ann@a.test", store.messages.index
    await store.folders.every(address)
    mailbox = place.root / "a.test/ann"
    with index.no_update(mailbox):
        await store.remove_empty_mailboxes(lambda _: False)
    before = sorted(mailbox.rglob("*"))
    assert mailbox / "cur" in before

    def written(_):
        (mailbox / ".Junk/new/1.M1P1.other").write_bytes(CONTENT)
        return True

    monkeypatch.setattr(index, "close_unused", written)
    await store.remove_empty_mailboxes(lambda _: False)
    [file] = set(mailbox.rglob("*")) - {*before}
    assert (file.name, sorted(mailbox.rglob("*"))) == ("1.M1P1.other", sorted([*before, file]))
