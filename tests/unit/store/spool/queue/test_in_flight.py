"""Queue commands concurrent with delivery, with other commands and with new mail."""

import asyncio

import pytest

from relay.store.spool.types import DueQuery, Selector, SpoolUnavailableError
from tests.support.operator import ALL, command

WAIT_S = 120.0  # real time: of what comes


@pytest.mark.parametrize("fault", [SpoolUnavailableError("the disk is gone"), ValueError("ours")])
async def test_a_failed_change_releases_its_claims(
    spool, make, active_claims, clock, monkeypatch, fault
) -> None:
    (claim,) = (await spool.accept(make())).claims
    active_claims.waiting.add(claim.key)
    faults = [fault] * 3
    submit = spool._writer.submit

    def refuse(operation, **more):
        if faults:
            raise faults.pop()
        return submit(operation, **more)

    monkeypatch.setattr(spool._writer, "submit", refuse)
    monkeypatch.setattr("relay.store.spool.shared.queue_admin._PAUSE_S_FIRST", 0.001)
    with pytest.raises(type(fault)):
        await spool.queue_admin.execute(command("cancel"))
    async with asyncio.timeout(120):
        while spool.queue_admin._releasing:
            await asyncio.wait(spool.queue_admin._releasing)
    (again,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert again.key == claim.key


async def test_a_large_command_runs_in_slices_and_mail_is_accepted_between_them(
    spool, make, monkeypatch
) -> None:
    monkeypatch.setattr("relay.store.spool.shared.queue_admin._AT_ONCE", 2)
    monkeypatch.setattr("relay.store.spool.shared.queue_admin.LISTED_MAX", 25)
    for _ in range(100):
        await spool.accept(make(), claim=False)
    queue_command = asyncio.ensure_future(spool.queue_admin.execute(command("hold")))
    async with asyncio.timeout(WAIT_S):
        while not (await spool.queue_admin.list(Selector(state="held"), limit=1)):
            await asyncio.sleep(0)  # its entries are selected with its first slice
    accepted = 0
    while not queue_command.done():
        await spool.accept(make(), claim=False)
        accepted += 1
    answer = (await queue_command).as_json()
    assert (answer["matched"], answer["done"], len(answer["entries"])) == (100, 100, 25)
    assert accepted > 3
    assert len(await spool.queue_admin.list(Selector(state="held"), limit=1000)) == 100


async def test_a_command_whose_client_disconnects_finishes_its_slice(
    spool, make, active_claims, tmp_path
) -> None:
    content = b"Subject: large\r\n\r\n" + b"x" * 200_000
    claims = [(await spool.accept(make(content=content))).claims[0] for _ in range(3)]
    active_claims.waiting |= {one.key for one in claims}
    queue_command = asyncio.ensure_future(spool.queue_admin.execute(command("cancel")))
    async with asyncio.timeout(WAIT_S):
        while active_claims.waiting:
            await asyncio.sleep(0)
    queue_command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queue_command
    async with asyncio.timeout(WAIT_S):
        while await spool.queue_admin.list(ALL, limit=10):
            await asyncio.sleep(0)  # until the slice that was started has ended
    await spool.accept(make())
    await asyncio.sleep(0)
    await spool._queries.read(lambda _: None)
    assert list((tmp_path / "spool.sqlite-content").iterdir()) == []
    assert len(await spool.queue_admin.list(ALL, limit=10)) == 1
