"""Commits that the server refuses: a full disk, a deadlock, and an operation that is at fault alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.store.spool.postgres.nodes import NodeIdentity
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.types import SpoolFullError, SpoolUnavailableError
from tests.support.postgres import PostgresServer, database_of
from tests.support.spool_nodes import open_node
from tests.support.spools import new_message

# A sequence counts how often it was asked, also in transactions that were rolled back.
REFUSE = """
CREATE SEQUENCE refused;
GRANT ALL ON SEQUENCE refused TO PUBLIC;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.subject = 'refused' AND nextval('refused') <= {times} THEN
        RAISE EXCEPTION 'of the test' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON message FOR EACH ROW EXECUTE FUNCTION refuse()"""


@pytest.fixture
async def spool(postgres_url: str, tmp_path: Path) -> AsyncIterator[PostgresSpool]:
    spool = open_node(postgres_url, tmp_path, NodeIdentity("one.test", "home"))
    await spool.start()
    yield spool
    await spool.stop()


@pytest.fixture
def refuse(spool, postgres_server: PostgresServer, postgres_url: str) -> Callable[[str, int], None]:
    """Return a function: the server refuses messages with the subject "refused", so many times."""

    def refuse(code: str, times: int) -> None:
        sql = REFUSE.format(code=code, times=times)
        postgres_server.sql(sql, database=database_of(postgres_url))

    return refuse


def message(subject: str):
    return new_message([("mx:a.test", "x@a.test")], subject=subject)


async def test_a_full_disk_is_a_full_spool(spool, refuse) -> None:
    refuse("53100", 2)  # in the batch, and alone
    subjects = ("good", "refused", "good")
    results = await asyncio.gather(
        *(spool.accept(message(one)) for one in subjects), return_exceptions=True
    )
    assert [isinstance(one, SpoolFullError) for one in results] == [False, True, False]
    assert sum((await spool.counts()).entries.values()) == 2
    await spool.accept(message("refused"))  # there is room again


@pytest.mark.parametrize("code", ["40P01", "40001"])
async def test_a_commit_that_was_in_the_way_of_another_is_repeated(spool, refuse, code) -> None:
    refuse(code, 1)
    await spool.accept(message("refused"))
    assert (await spool.counts()).unaccounted == 0
    assert sum((await spool.counts()).entries.values()) == 1


async def test_a_commit_that_stays_in_the_way_fails(spool, refuse) -> None:
    refuse("40P01", 7)
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(message("refused"))
    assert sum((await spool.counts()).entries.values()) == 0
