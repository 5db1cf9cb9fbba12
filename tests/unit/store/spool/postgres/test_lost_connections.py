"""What becomes of commits whose connection is lost, and who owns the spool afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from relay.base.message.outcome import Evidence, Indeterminate
from relay.store.spool.engine import News
from relay.store.spool.postgres import transactions, writer
from relay.store.spool.postgres.nodes import NodeIdentity
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.postgres.transactions import WriteTransaction
from relay.store.spool.types import (
    Claim,
    ClaimResult,
    DueQuery,
    EntrySchedule,
    SpoolError,
    SpoolUnavailableError,
)
from tests.support.cutting_proxy import Cut, CuttingProxy
from tests.support.events import until
from tests.support.operator import OK
from tests.support.postgres import PASSWORD, PostgresServer, database_of
from tests.support.spool_nodes import open_node
from tests.support.spools import new_message

DOUBT = Indeterminate(Evidence("4.4.2", "no reply"), unanswered=True)
TO_A = [("mx:a.test", "x@a.test")]
NOW = 10**18  # after the due time of every entry
SOON_S = 20
LOSSES = [[Cut.REQUEST], [Cut.REPLY], [Cut.REQUEST, Cut.REPLY], [*[Cut.REQUEST] * 3, Cut.REPLY]]


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(("127.0.0.1", postgres_server.port)) as running:
        yield running


@pytest.fixture
def at(proxy: CuttingProxy, postgres_url: str, tmp_path: Path) -> Callable[..., PostgresSpool]:
    """Return a function that opens the spool behind the proxy, for the state_dir with this id."""

    def at(
        home: str = "home", node: str = "one.test", *, behind_proxy: bool = True
    ) -> PostgresSpool:
        user = f"relay:{quote(PASSWORD)}"
        url = f"postgresql://{user}@127.0.0.1:{proxy.address[1]}/{database_of(postgres_url)}"
        url = url if behind_proxy else postgres_url
        return open_node(url, tmp_path, NodeIdentity(node, home))

    return at


@pytest.fixture
async def spool(at: Callable[..., PostgresSpool]) -> AsyncIterator[PostgresSpool]:
    spool = at()
    await spool.start()
    await spool.keeper.stop()  # its beats are operations as well, which a cut may meet
    await spool.keeper.beat()  # behind one that it has begun
    yield spool
    await spool.stop()


def messages(server: PostgresServer, url: str) -> int:
    return int(server.sql("SELECT count(*) FROM message", database=database_of(url)))


async def test_a_commit_that_a_pooler_gives_to_another_session_is_repeated(
    spool, postgres_server, postgres_url
) -> None:
    before = spool._writer._connection
    before.pid += 1  # that of its session; its transactions run in another
    accepted = await spool.accept(new_message(TO_A))
    assert len(accepted.claims) == 1
    assert spool._writer._connection is not before
    assert messages(postgres_server, postgres_url) == 1


@pytest.mark.parametrize("cuts", LOSSES)
async def test_a_message_is_there_once_whatever_is_lost(
    spool, proxy, postgres_server, postgres_url, cuts
) -> None:
    for cut in cuts:
        proxy.lose("writer", cut, of=b"x@a.test")
    accepted = await asyncio.wait_for(spool.accept(new_message(TO_A)), SOON_S)
    assert proxy.losses == len(cuts)
    assert messages(postgres_server, postgres_url) == 1
    (claim,) = accepted.claims
    assert (await spool.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert (await spool.counts()).unaccounted == 0


async def test_mail_whose_commit_nobody_can_ask_after_is_refused_and_free(
    spool, proxy, postgres_server, postgres_url, monkeypatch
) -> None:
    """The commit after the first loss takes effect, and the server is away until the answer."""
    proxy.lose("writer", Cut.REQUEST, of=b"x@a.test")
    proxy.lose("writer", Cut.REPLY, of=b"x@a.test", is_last=True)
    accepting = asyncio.create_task(spool.accept(new_message(TO_A)))
    await until(lambda: proxy.losses == 2)
    monkeypatch.setattr(writer, "_ANSWER_S", 0.0)
    with pytest.raises(SpoolUnavailableError):
        await asyncio.wait_for(accepting, SOON_S)
    monkeypatch.undo()
    proxy.is_refusing = False
    assert len(await claims_of(spool)) == 1
    assert messages(postgres_server, postgres_url) == 1


@pytest.mark.parametrize("cuts", LOSSES)
async def test_a_result_is_recorded_once_whatever_is_lost(spool, proxy, cuts) -> None:
    claims = [(await spool.accept(new_message(TO_A))).claims[0] for _ in range(3)]
    for cut in cuts:
        proxy.lose("writer", cut, of=claims[1].message.id.encode())
    recorded = await asyncio.gather(*(spool.record(ClaimResult(one, 5, {1: OK})) for one in claims))
    assert proxy.losses == len(cuts)
    assert [in_time for in_time, _ in recorded] == [True] * 3
    counts = await spool.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (0, 0)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("cut", [Cut.REQUEST, Cut.REPLY], ids=lambda one: one.value)
async def test_a_claim_is_not_lost_at_any_place(spool, proxy, place, cut) -> None:
    """A claim is several statements in a transaction: each of them may be the last."""
    queue_id = (await spool.accept(new_message(TO_A), claim=False)).queue_id
    proxy.lose("writer", cut, after=place)
    batch = await asyncio.wait_for(spool.claim_due(NOW, 10, DueQuery()), SOON_S)
    if not batch.claims:  # a second look finds what the first one lost
        batch = await spool.claim_due(NOW, 10, DueQuery())
    (claim,) = batch.claims
    assert claim.message.id == queue_id
    assert (await spool.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert sum((await spool.counts()).entries.values()) == 0


async def test_an_operation_that_ends_each_connection_ends_itself(spool, monkeypatch) -> None:
    """As one that the server cannot take: others go on after it."""
    monkeypatch.setattr(writer, "_ANSWER_S", 0.3)
    with pytest.raises(SpoolUnavailableError):
        await asyncio.wait_for(spool.change(lambda tables: tables.connection.abort()), SOON_S)
    monkeypatch.undo()
    await until(lambda: not spool.health())
    assert (await spool.accept(new_message(TO_A))).claims


async def claims_of(spool: PostgresSpool) -> Sequence[Claim]:
    """Return what can be claimed once the database is back."""
    async with asyncio.timeout(SOON_S):
        while True:
            with suppress(SpoolUnavailableError):
                return (await spool.claim_due(NOW, 10, DueQuery())).claims
            await asyncio.sleep(0.05)


async def test_an_old_session_that_still_works_is_ended_first(
    spool, proxy, postgres_server, postgres_url
) -> None:
    """Its commit would take effect after it was looked for, and the second one be refused."""
    database = database_of(postgres_url)
    working = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%writer'"
        f" AND datname = '{database}' AND wait_event_type = 'Lock'"
    )
    admin = await asyncpg.connect(
        host=str(postgres_server.folder),
        port=postgres_server.port,
        user="postgres",
        database=database,
    )
    before = spool._writer.own.session.pid
    await admin.execute("BEGIN; LOCK TABLE message IN SHARE MODE")
    proxy.lose("writer", Cut.CLIENT)
    accepting = asyncio.create_task(spool.accept(new_message(TO_A)))
    await until(lambda: spool._writer.own.session.pid != before)
    await until(lambda: postgres_server.sql(working) == "1")  # the new session, and not the old one
    await admin.close()
    await asyncio.wait_for(accepting, SOON_S)
    assert messages(postgres_server, postgres_url) == 1


async def test_a_server_that_answers_nothing_for_long_counts_as_away(
    spool, postgres_url, monkeypatch
) -> None:
    """As one whose disk hangs: the connection stays, and no statement ends."""
    monkeypatch.setattr(writer, "_OPERATION_S", 0.3)
    other = await asyncpg.connect(postgres_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE node IN ACCESS EXCLUSIVE MODE")
            beat = asyncio.create_task(spool.keeper.beat())
            async with asyncio.timeout(SOON_S):
                while not spool.health():
                    await asyncio.sleep(0.01)
            assert "the database does not answer" in spool.health()
            assert spool.load().commit_s < 0.3
        async with asyncio.timeout(SOON_S):
            with suppress(SpoolError):
                await beat
            while spool.health():
                await asyncio.sleep(0.01)
    finally:
        await other.close()
    assert (await asyncio.wait_for(spool.accept(new_message(TO_A)), SOON_S)).claims


@pytest.mark.parametrize("outcome", [OK, DOUBT], ids=["a batch", "alone"])
async def test_a_result_is_recorded_once_if_the_time_limit_ends_the_connection(
    spool, monkeypatch, outcome
) -> None:
    """The limit passes in the turn of the loop in which the last answer comes, as it does after a
    suspend of the machine: nothing was raised before the commit is sent.
    """
    (claim,) = (await spool.accept(new_message(TO_A))).claims
    record, ended = transactions.record, []

    def record_at_the_limit(transaction: WriteTransaction, *values: object, **options: object):
        answer = record(transaction, *values, **options)
        if not ended:
            ended.append(transaction.connection)
            over = asyncio.Event()
            transaction.connection.add_termination_listener(lambda _: over.set())
            monkeypatch.undo()
            transaction.wait(over.wait())
        return answer

    monkeypatch.setattr(transactions, "record", record_at_the_limit)
    monkeypatch.setattr(writer, "_OPERATION_S", 1.0)
    waits = EntrySchedule(NOW, NOW) if outcome is DOUBT else None
    result = ClaimResult(claim, 5, {1: outcome}, waits, unanswered=((1, 1),) if waits else ())
    assert (await asyncio.wait_for(spool.record(result), SOON_S))[0]
    assert len(ended) == 1
    counts = await spool.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (1 if waits else 0, 0)


async def test_a_result_is_recorded_once_if_the_time_limit_ends_a_statement(
    spool, postgres_url, monkeypatch
) -> None:
    """The server works on it for too long, and the next connection ends what it does."""
    (claim,) = (await spool.accept(new_message(TO_A))).claims
    before = spool._writer.own.session.pid
    monkeypatch.setattr(writer, "_OPERATION_S", 0.3)
    other = await asyncpg.connect(postgres_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE recipient IN SHARE MODE")
            recording = asyncio.create_task(spool.record(ClaimResult(claim, 5, {1: OK})))
            await until(lambda: spool._writer.fault)
            monkeypatch.undo()
            await until(lambda: spool._writer.own.session.pid != before)
    finally:
        await other.close()
    assert (await asyncio.wait_for(recording, SOON_S))[0]
    counts = await spool.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (0, 0)


async def test_a_server_that_refuses_listen_costs_a_node_only_the_messages_of_others(
    at, proxy, capfd
) -> None:
    """It looks by itself with each beat, and says so once; the others hear what it does."""
    proxy.refused = b"LISTEN"
    deaf, other = at(), at("other", "two.test", behind_proxy=False)
    found, heard = asyncio.Queue[News](), asyncio.Queue[News]()
    other.on_news = heard.put_nowait
    for node in (deaf, other):
        await node.start()
    async with asyncio.timeout(SOON_S):
        while heard.empty() or News.RELEASED not in heard.get_nowait():
            deaf.keeper.tell(News.RELEASED)
            await asyncio.sleep(0.1)  # until the other one listens
        deaf.on_news = found.put_nowait
        await other.accept(new_message(TO_A), claim=False)
        while News.DUE not in await found.get():
            pass
    assert len((await deaf.claim_due(NOW, 10, DueQuery())).claims) == 1
    [said] = [
        one
        for one in capfd.readouterr().err.splitlines()
        if "no notifications of other nodes" in one
    ]
    assert "it is not supported here" in said
    await deaf.stop()
    await other.stop()


async def test_an_internal_error_ends_the_node(spool, monkeypatch) -> None:
    """It would look as if the database were away."""
    ended: asyncio.Queue[SpoolError] = asyncio.Queue()
    spool.on_lost = ended.put_nowait
    monkeypatch.setattr(spool._writer, "_gather", lambda: 1 / 0)
    with pytest.raises(SpoolUnavailableError, match="internal error"):
        await asyncio.wait_for(spool.accept(new_message(TO_A)), SOON_S)
    assert "ZeroDivisionError" in str(await asyncio.wait_for(ended.get(), SOON_S))
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(new_message(TO_A))
