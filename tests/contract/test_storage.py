"""The stored form of a spool, as commands use it that need no running queue."""

import pytest

from relay.store.spool.engine import VerifyRequest

LARGE = b"Subject: large\r\n\r\n" + b"x" * 200_000


@pytest.fixture
def postgres_url(empty_database: str) -> str:
    """Each of these spools has a first start."""
    return empty_database


def verified(tools, *, is_owner: bool):
    """Return what was checked, and the findings."""
    findings = []
    checked = tools.verify(VerifyRequest(findings.append, is_owner=is_owner, full=True))
    return checked, findings


async def test_nothing_is_there_before_the_first_start(storage, open_spool) -> None:
    assert not storage.exists()
    spool = open_spool()
    await spool.start()
    await spool.stop()
    assert storage.exists()
    assert not any(path.is_dir() for path in storage.files())


async def test_a_spool_in_use_is_verified(tools, spool, make) -> None:
    await spool.accept(make(content=LARGE))
    checked, findings = verified(tools, is_owner=False)
    assert (sum(checked.values()) > 0, findings) == (True, [])


async def test_a_spool_in_use_is_copied(storage, spool, make, tmp_path) -> None:
    await spool.accept(make(content=LARGE))
    await spool.accept(make(), submission_key="k")
    folder = tmp_path / "copy"
    folder.mkdir()
    copied = storage.back_up(folder)
    counts = {name: copied.counts[name] for name in ("messages", "recipients", "submissions")}
    assert counts == {"messages": 2, "recipients": 2, "submissions": 1}
    assert copied.counts["entries"] == {"queued": 2}
    assert list(copied.missing) == []
    assert copied.database.exists()
    assert (await spool.accept(make(), submission_key="k")).repeated


async def test_a_spool_can_be_checked_while_it_is_used(storage, spool, make) -> None:
    await spool.accept(make())
    storage.check(has_owner=True)
    assert not storage.is_marked_damaged()
    assert (list(storage.other_domains()), spool.is_of_other_store("a.test")) == ([], False)
    assert all("is off" in one for one in storage.faults())  # a server of tests syncs nothing


async def test_a_spool_that_was_stopped_is_whole(storage, tools, open_spool, make) -> None:
    spool = open_spool()
    await spool.start()
    claim = (await spool.accept(make(content=LARGE))).claims[0]
    await spool.stop()
    storage.check(has_owner=False)
    assert not storage.is_marked_damaged()
    assert verified(tools, is_owner=True)[1] == []
    again = open_spool()
    await again.start()
    assert await again.read_content(claim.content_id) == LARGE
    await again.stop()
