"""Bodies that arrive in parts: a server that was away, or has lost the last of them."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.message.content import LargeContent, read_all
from relay.base.message.outcome import Evidence, Failed
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Settings, SpoolSettings
from relay.store import spool as spools
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.postgres.bodies import PART_BYTES
from relay.store.spool.types import ClaimResult, IncomingBody, NewMessage, SpoolUnavailableError
from tests.support.spools import new_message

HEADER = b"Subject: large\r\n"
TO_A = [("mx:a.test", "x@a.test")]
LINES = b"\r\n" + b"0123456789abcdef\r\n" * 20_000


@pytest.fixture
async def spool(tmp_path: Path, postgres_url: str) -> AsyncIterator[SpoolEngine]:
    settings = Settings("relay.test", tmp_path, spool=SpoolSettings(postgres_url))
    engine = spools.open(settings, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics())
    await engine.start()
    yield engine
    await engine.stop()


def with_body(body: IncomingBody, *hops: tuple[str, str]) -> NewMessage:
    content = LargeContent(HEADER, (body.octets(),), eight_bit=False)
    return new_message(hops or TO_A, contents=(content,))


async def arrived(spool: SpoolEngine) -> IncomingBody:
    body = spool.incoming_body()
    for _ in range(3):
        await body.write([LINES])
    return body


def end_sessions(sql: Callable[[str], str], name: str) -> None:
    """End the sessions of this name, as a server that stops does."""
    where = f"application_name LIKE 'relay % {name}' AND datname = current_database()"
    assert sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {where}")


async def test_a_body_whose_connection_was_lost_is_refused(spool, sql) -> None:
    """Its parts were not synced: a server that crashed has lost some."""
    body = spool.incoming_body()
    await body.write([LINES])
    end_sessions(sql, "bodies")
    with pytest.raises(SpoolUnavailableError, match="was lost while the message came in"):
        await body.write([LINES])
    with pytest.raises(SpoolUnavailableError, match="was lost while the message came in"):
        await spool.accept(with_body(body))
    body.discard()
    (claim,) = (await spool.accept(with_body(await arrived(spool)))).claims
    assert read_all(await spool.read_content(claim.content_id)) == HEADER + LINES * 3
    assert sql("SELECT count(DISTINCT id) FROM body") == "1"


@pytest.mark.parametrize("where", ["part = 1", "part > 1", "true"])
async def test_a_part_that_a_crash_has_lost(spool, sql, where: str) -> None:
    """The acceptance finds it, so that nothing is accepted without its body."""
    body = await arrived(spool)
    assert 3 * len(LINES) > 3 * PART_BYTES
    message = with_body(body)
    sql(
        f"CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" DELETE FROM body WHERE {where}; RETURN NEW; END $$;"
        " ALTER FUNCTION lose SECURITY DEFINER;"
        " CREATE TRIGGER lose AFTER INSERT ON body FOR EACH ROW WHEN (NEW.part = 4)"
        " EXECUTE FUNCTION lose()"
    )
    with pytest.raises(SpoolUnavailableError, match="lost a part"):
        await spool.accept(message, submission_key="k")
    assert sql("SELECT count(*) FROM message") == "0"
    assert sql("SELECT count(*) FROM submission") == "0"
    sql("DROP TRIGGER lose ON body")
    body = await arrived(spool)
    assert (await spool.accept(with_body(body), submission_key="k")).claims


async def test_a_part_of_a_report_that_was_lost(spool, sql) -> None:
    """A result whose report has no body is not recorded: it is repeated."""
    (claim,) = (await spool.accept(new_message(TO_A))).claims
    report = with_body(await arrived(spool), ("local", "alice@example.test"))
    outcome = Failed(Evidence("5.1.1", "550 5.1.1 no"))
    claim_result = ClaimResult(claim, 5, {1: outcome}, reports=(report,))
    sql("CREATE RULE lose AS ON INSERT TO body WHERE NEW.part = 4 DO INSTEAD NOTHING")
    with pytest.raises(SpoolUnavailableError, match="lost a part"):
        await spool.record(claim_result)
    sql("DROP RULE lose ON body")
    report = with_body(await arrived(spool), ("local", "alice@example.test"))
    recorded, _ = await spool.record(replace(claim_result, reports=(report,)))
    assert recorded
