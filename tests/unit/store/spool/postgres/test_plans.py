"""What the write connection runs finds each row by its whole key, whatever statistics say.

ANALYZE may see the tables empty, full of dead rows, or not at all. The statements are those that
the server logs while the operations of a spool run; each is planned as the write connection plans
it, without its values.
"""

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from relay.base.crashpoints import CrashPoints
from relay.base.message.envelope import ForwardPath, Notify
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import Delivered, Evidence, Failed, Relayed
from relay.base.message.receipt import ReceiptRequest
from relay.base.observe.metrics import Metrics
from relay.base.settings.postgres_url import parse_postgres_url
from relay.base.settings.tree import Settings, SpoolSettings, SuppressionSettings
from relay.formats.read_report import RemoteClaim, RemoteReport
from relay.store import spool as spools
from relay.store.journeys.events import Step
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.postgres.maintenance import WITHOUT_NODE_S
from relay.store.spool.postgres.server import DatabaseHosts
from relay.store.spool.postgres.tables import numbered
from relay.store.spool.postgres.writer import PLANS
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.shared.results import _OF_ENVID, _OF_MESSAGE_ID, _OF_REMOTE_ID
from relay.store.spool.types import (
    ClaimResult,
    DueQuery,
    EntryExtra,
    EntrySchedule,
    PriorityLevel,
    Selector,
    SentReceipt,
)
from tests.support.events import an_event
from tests.support.operator import LATER, FakeActiveClaims, command, own_mx, reroute
from tests.support.postgres import database_of

# Small tables, and the index of what is claimed, which a start goes through.
WHOLE = {"counter", "clock", "node", "event_number", "schema_version", "mail_root", "entry_claimed"}
KEYS = {
    "message": {"id"},
    "content": {"message_id", "number"},
    "entry": {"message_id", "number"},
    "recipient": {"message_id", "entry", "number"},
    "event": {"message_id", "sequence"},
    "submission": {"key"},
    "body": {"id", "part"},
    "owed_receipt": {"message_id", "number"},
    "suppressed": {"address"},
}
# At most 50,000 rows, which the relay goes through once a day, and after commands on what a restore
# has held; at most 1,000 hold rules; and dead addresses, counted for each that is new, at most 100,000.
WHOLE_TABLE = re.compile(
    r"owed_receipt.* WHERE (owed_us <|state =)|standing_hold WHERE until_us"
    r"|suppressed WHERE who = '' AND last_us|count\(\*\) FROM suppressed$"
)
SYSTEM = re.compile(r"pg_|set_config|^(BEGIN|COMMIT|ROLLBACK|SET|SHOW|CREATE|LOCK)\b")
ON_KEYS = re.compile(
    r"\b(id|message_id|number|entry|content_id|ctid|sequence) =|= \S+\.(id|message_id|number|entry|ctid)\b"
)
OF_VALUE = re.compile(r"\b(message_id|id) = \(?\$\d")
LOGGED = re.compile(r"LOG:  execute [^:]*: (.*)", re.DOTALL)
LINE = re.compile(r"^(?=\d{4}-\d\d-\d\d )", re.MULTILINE)
ROWS = 2000
FILL = f"""
INSERT INTO message SELECT 'm' || n, '', 'smtp', 1, n, n, 1, '', 's' || n, '', '', 0, 0, '', '<' || n, ''
    FROM generate_series(1, {ROWS}) n;
INSERT INTO content SELECT 'm' || n, 0, 1, '', NULL, '', 0, 0 FROM generate_series(1, {ROWS}) n;
INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, attempts, epoch)
    SELECT 'm' || n, 1, 'mx:' || n % 7, 0, 'deferred', n % 2, n, 0, 1 FROM generate_series(1, {ROWS}) n;
INSERT INTO recipient SELECT 'm' || n, 1, 1, 'x@a', '', '', 'deferred', '', '', '', ''
    FROM generate_series(1, {ROWS}) n;
INSERT INTO event SELECT 'm' || n, n, 5, n, '' FROM generate_series(1, {ROWS}) n;
INSERT INTO submission SELECT 'k' || n, 'm' || n, n FROM generate_series(1, {ROWS}) n;
INSERT INTO owed_receipt SELECT 'm' || n, 1, 'b', 'c' || n, '', n, 'owed', ''
    FROM generate_series(1, {ROWS}) n;
INSERT INTO suppressed SELECT n || '@a', 1, 1, '[]', '', '', '', 'm' || n FROM generate_series(1, {ROWS}) n;
"""
STATES = {
    "not analyzed": "TRUNCATE {tables}; {fill}",
    "analyzed empty": "TRUNCATE {tables}; ANALYZE; {fill}",
    "analyzed": "ANALYZE",
    "full of dead rows": "DELETE FROM entry; DELETE FROM content; ANALYZE",
}
BOB = "bob@example.test"
ASKED = ReceiptRequest(
    BOB,
    "a@example.test",
    BOB,
    orcpt="",
    message_id="<m@x>",
    subject="",
    thread="",
    account="",
    is_trusted=True,
)
DELIVERED = Delivered(Evidence("2.1.5", "250 ok", graph_id="copy", receipt=ASKED))
SENT = Relayed(Evidence("2.0.0", "250 ok"))
NEVER = 4 * 10**15


def faults_of(node: dict[str, Any]) -> Iterator[str]:
    """Say what a plan does other than to look for rows by a key."""
    for child in node.get("Plans", ()):
        yield from faults_of(child)
    kind, table = node["Node Type"], node.get("Relation Name", "")
    name = node.get("Index Name", table)
    if ON_KEYS.search(node.get("Join Filter", "")) and not is_of_one_message(node):
        yield f"{kind} joins by a filter: {node['Join Filter']}"
    if kind == "Seq Scan" and table not in WHOLE:
        yield f"all of {table} is read"
    if "Index" in kind and "Index Cond" not in node and not {name, table} & WHOLE:
        yield f"all of {name} is read"
    filtered = re.findall(r"\(*(\w+) = [^()]*", node.get("Filter", ""))
    if missed := set(filtered) & KEYS.get(table, set()):
        yield f"{kind} on {name} finds {', '.join(sorted(missed))} by a filter"
    if node.get("Hash Cond") or node.get("Merge Cond"):
        yield f"{kind}: {node.get('Hash Cond') or node.get('Merge Cond')}"


def is_of_one_message(node: dict[str, Any]) -> bool:
    """Whether all that a node reads is of one message, which a value names."""
    if "Relation Name" in node:
        return bool(OF_VALUE.search(node.get("Index Cond") or node.get("Recheck Cond", "")))
    return all(map(is_of_one_message, node.get("Plans", ())))


async def run_all(spool: SpoolEngine, make, clock, hop: str = "mx:a.test") -> None:
    """Run what changes a spool, each at least once."""
    claims = [*(await spool.accept(make({hop: ["x@a.test", "y@a.test"]}))).claims]
    (claim,) = (await spool.accept(make(), submission_key="once")).claims
    await asyncio.gather(  # all parts of a commit
        spool.accept(make(), submission_key="twice"), spool.record(ClaimResult(claim, 5, {1: SENT}))
    )
    await spool.renew_submission_keys(["once"])
    await spool.record_mail_root("store", "id")
    reached = Evidence("2.0.0", "250 ok", remote=True)
    (claim,) = claims
    part = ClaimResult(claim, 5, {1: Relayed(reached)}, goes_on=True, owed=[1])
    await spool.record(part)
    at_us = clock.queue_us()
    later = EntrySchedule(at_us, at_us, PriorityLevel.NORMAL, "dns", 1)
    await spool.record(ClaimResult(claim, 5, {2: LATER}, later, pays=True, ends_warning=True))
    await run_claims(spool, make)
    await run_receipts(spool, make)
    sent = await spool.accept(make(submission_id="d1", envid="d1", message_id="<m@x>"))
    await spool.record(ClaimResult(sent.claims[0], 5, {1: Relayed(reached)}))
    gone = RemoteClaim("", "x@a.test", "failure", "5.1.1", "550 no", "mx.a.test")
    for envid in ("d1", "", "another", "d1"):
        report = RemoteReport(envid, "<m@x>", "mx.a.test", (gone,))
        carrier = make({"local": [BOB]}, reverse_path="", client="mx.a.test [192.0.2.7]")
        (claim,) = (await spool.accept(carrier)).claims
        about = (report, ("alice@example.test",))
        await spool.record(ClaimResult(claim, 9, {1: DELIVERED}, remote_report=about))
    dead = Failed(Evidence("5.1.1", "550 5.1.1 no such user", remote=True), at_rcpt=True)
    for outcome in (dead, Relayed(reached)):
        (claim,) = (await spool.accept(make(), sought=["x@a.test"])).claims
        await spool.record(ClaimResult(claim, 5, {1: outcome}))
    await spool.suppression.add(["x@a.test"], who="olga", reason="")
    await spool.suppression.remove("x@a.test")
    await spool.suppression.prune()
    await run_commands(spool, make)
    clock.advance(100 * 86400)
    await spool.maintenance.prune(1.0)


async def run_claims(spool: SpoolEngine, make) -> None:
    """Claim by level, by sender and for a next hop, release, and hold what a rule holds."""
    extra = EntryExtra(reason="see", rule="many", lifetime_us=1)
    message = make({"mx:a.test": ["x@a.test"]})
    entries = tuple(replace(one, extra=extra) for one in message.entries)
    await spool.accept(replace(message, entries=entries, held_max=5))
    hop = NextHop.parse("mx:a.test")
    await spool.accept(make(), claim=False)
    for look in (DueQuery(), DueQuery(next_hop=hop), DueQuery(sender=7)):
        for level in PriorityLevel:
            found = await spool.claim_due(NEVER, 5, replace(look, level=level))
            await spool.release(found.claims)
    claims = (await spool.accept(make({"mx:a.test": ["x@a.test"]}))).claims
    waiting = EntrySchedule(1, 1)
    event = an_event(Step.DELIVERY, 5, {"entry": 1, "recipients": [], "held": "unreadable"})
    await spool.record(ClaimResult(claims[0], 5, {1: LATER}, waiting, held=True, events=(event,)))


async def run_receipts(spool: SpoolEngine, make) -> None:
    """Owe a read receipt, move it, send it, and end it."""
    for copies in range(2):
        (claim,) = (await spool.accept(make({"local": [BOB]}))).claims
        await spool.record(ClaimResult(claim, 5, {1: DELIVERED}))
        owed, *_ = await spool.receipts.owed()
        await spool.receipts.moved(owed.key, "archive")
        event = an_event(Step.REPORT, 7, {"kind": "read"})
        sent = SentReceipt(owed.key, event, is_kept=bool(copies))
        await spool.accept(make(), submission_key=owed.submission_key, receipt=sent)
    await spool.receipts.end([owed.key])
    await spool.receipts.prune(NEVER)


async def run_commands(spool: SpoolEngine, make) -> None:
    """Run each command of an operator, on entries that wait, are held, or are captured."""
    claims = FakeActiveClaims()
    spool.queue_admin.delivery = claims
    success = frozenset({Notify.SUCCESS})
    message = make({"mx:b.test": ["x@b.test", "y@c.test"]})
    (entry,) = message.entries
    asked = [replace(one, path=ForwardPath(one.path.address, success)) for one in entry.recipients]
    await spool.accept(
        replace(message, entries=(replace(entry, recipients=tuple(asked)),)), claim=False
    )
    held = await spool.accept(make(), claim=True)
    claims.waiting |= {one.key for one in held.claims}
    for each in (
        command("retry"),
        command("hold"),
        command("hold", until_us=NEVER),
        command("release", as_before=True),
        command("reroute", to=own_mx, to_text="default"),
        reroute("mx:d.test"),
        command("cancel", bounce=True),
        command("cancel"),
    ):
        await spool.queue_admin.execute(each)
    for restored in ("hold", "release", "cancel"):
        await spool.accept(make({"capture": ["x@a.test"]}))
        release = reroute("mx:d.test")
        copied = replace_command(release, copy_to=("z@d.test",))
        await spool.queue_admin.execute(copied)
        await spool.queue_admin.execute(release)
        (claim,) = (await spool.accept(make({"local": [BOB]}))).claims
        await spool.record(ClaimResult(claim, 5, {1: DELIVERED}))
        backed_up_us = 1 if restored == "hold" else None
        selector = Selector(all=True) if backed_up_us else Selector(restored=True)
        await spool.queue_admin.execute(command(restored, selector, backed_up_us=backed_up_us))


async def end_without_node(spool: SpoolEngine, make, clock, sql) -> None:
    """Claim what has expired for a mail root that no node holds."""
    await spool.accept(make({"local": [BOB]}, expires_us=clock.queue_us() + 1), claim=False)
    sql("INSERT INTO mail_root (store, id) VALUES ('gone', '') ON CONFLICT DO NOTHING")
    number = int(sql("SELECT number FROM mail_root WHERE store = 'gone'"))
    sql(f"UPDATE entry SET store = {number} WHERE next_hop = 'local'")
    clock.advance(100 * 86400)
    spool.maintenance.forget()
    spool.maintenance.seen({number: "gone"}, now_s=-WITHOUT_NODE_S)
    assert await spool.maintenance.claim_without_node()


def replace_command(of: QueueCommand, **changes: Any) -> QueueCommand:
    return dataclasses.replace(of, operation=Operation.RELEASE, **changes)


@pytest.fixture
async def ran(tmp_path, make, clock, reporter, postgres_server, postgres_url) -> list[str]:
    """The statements of the write connection that ran."""
    sql, database = postgres_server.sql, database_of(postgres_url)
    sql(f"ALTER DATABASE {database} SET log_statement = 'all'")
    seen = len(postgres_server.log)
    settings = Settings(
        "relay.test",
        tmp_path,
        spool=SpoolSettings(postgres_url),
        suppression=SuppressionSettings(),
    )
    for _ in range(2):  # the second takes over what the first has claimed
        spool = spools.open(settings, clock=clock, crash=CrashPoints(), metrics=Metrics())
        await spool.start()
        spool.queue_admin.reports.writer = reporter
        await run_all(spool, make, clock)
        await spool.accept(make())
        await end_without_node(spool, make, clock, lambda text: sql(text, database=database))
        await spool.stop()
    found = []
    for line in LINE.split(postgres_server.log[seen:]):
        logged = LOGGED.search(line.replace("\n\t", "\n"))
        if logged is not None and " writer: " in line.partition("LOG:")[0]:
            found.append(re.split(r"\n\S+ \S+ \S+ \[\d+\]", logged[1])[0].strip())
    return list(dict.fromkeys(one for one in found if not SYSTEM.search(one)))


async def test_no_statement_depends_on_statistics(ran, postgres_server, postgres_url):
    connection = await DatabaseHosts(parse_postgres_url(postgres_url)).connect(purpose="plans")
    await connection.execute(PLANS)
    wrong = []
    for state, prepared in STATES.items():
        script = prepared.format(tables=", ".join(KEYS), fill=FILL)
        postgres_server.sql(script, database=database_of(postgres_url))
        for sql in ran:
            faults = list(faults_of(await planned(connection, sql)))
            if WHOLE_TABLE.search(sql):
                faults.clear()
            wrong += [f"{state}: {one}: {' '.join(sql.split())[:300]}" for one in faults]
    await connection.close()
    assert len(ran) > 40
    assert not wrong, "\n".join(wrong)


async def test_a_name_that_most_messages_have_makes_no_other_one_slow(
    postgres_server, postgres_url
) -> None:
    """Whoever sends a report names what they like: all messages are not read for it."""
    rows = "generate_series(10000, 15000) n"
    postgres_server.sql(
        "INSERT INTO message SELECT n, 'a@b', 'smtp', 1, n, n, 1, '', '', 'e', '', 0, 0, '', '<m>',"
        f" '' FROM {rows}; INSERT INTO recipient SELECT n, 1, 1, 'x@a', '', '', 'deferred', '', '',"
        f" '', '' FROM {rows}; ANALYZE",
        database=database_of(postgres_url),
    )
    connection = await DatabaseHosts(parse_postgres_url(postgres_url)).connect(purpose="plans")
    await connection.execute(PLANS)
    for sql in (_OF_ENVID, _OF_MESSAGE_ID, _OF_REMOTE_ID):
        assert list(faults_of(await planned(connection, numbered(sql)))) == []
    await connection.close()


async def planned(connection, sql: str) -> dict[str, Any]:
    """Return the generic plan."""
    number = max(map(int, re.findall(r"\$(\d+)", sql)), default=0)
    await connection.execute(f"PREPARE one AS {sql}")
    values = f"({', '.join(['NULL'] * number)})" if number else ""
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE one{values}")
    await connection.execute("DEALLOCATE one")
    (plan,) = json.loads(text)
    return plan["Plan"]
