"""The nodes that share a spool: who they are, and which of them live.

Each time that a node joins, it gets a new *incarnation*, a row of `node`. Claims of entries name
the incarnation as their owner. A living node raises the beat in its row every BEAT_S. It counts as
dead when another node has read the same beat for DEAD_S by the clock of that node: times of two
machines are never compared. A dead incarnation never lives again: a node that wakes up joins as
another one.

All nodes share an advisory lock. A Relay that needs the spool for itself takes it exclusively. The
row of a node names the session of its write connection. A lost session may still be committing, so
the node ends it first, and waits until it has gone.

The row of each node has digests of what must be equal on all nodes, such as rules, routes and keys.
Some of that is made of secrets that a person has chosen, and guessing them from a digest must be
expensive: the digests are made by scrypt, with a salt that only this spool has. Two stores must not
have the same local domain.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import scrypt
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.observe.logs import get_logger
from relay.store.spool.engine import LOCAL_DOMAINS
from relay.store.spool.postgres.server import TIMELINE
from relay.store.spool.postgres.tables import ConnectionTables
from relay.store.spool.shared.tables import Tables
from relay.store.spool.types import NodeNameError, SpoolInUseError, SpoolUnavailableError

BEAT_S = 5.0
DEAD_S = 30.0
NO_DOT_S = 5.0  # before the end of a lease, in which no attempt sends the final dot
_GAP_S = 15.0  # after a longer time between two readings, silence is measured again
_WATCH_S = 10.0  # how long a start watches another node that has its name
_LOOKS = 10
# Of this application: "relay" and the number of the lock, as a 64-bit key.
_LOCK = 0x72656C6179_000001
_JOIN_LOCK = 0x72656C6179_000003
_END_MS = 5000
_MACHINE_ID = Path("/etc/machine-id")
_SESSION = (
    f"SELECT pid, CAST(backend_start AS text), {TIMELINE}"
    " FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)
_END = (
    "SELECT pg_terminate_backend(pid, ?) FROM pg_stat_activity"
    " WHERE pid = ? AND CAST(backend_start AS text) = ? AND usename = current_user"
    " AND pid <> pg_backend_pid()"
    " AND (SELECT CAST(system_identifier AS text) FROM pg_control_system()) = ?"
)
_NODES = (
    "SELECT incarnation, name, state, beat, home, place, version, store, since_us, pid, begun,"
    " timeline, digests FROM node"
)
# The time of the server.
WALL = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
STATES = _ALIVE, _STOPPED, _DEAD = "alive", "stopped", "dead"
_FIRST_FREE = "SELECT greatest(coalesce(max(incarnation), 0) + 1, ?) FROM node"
_JOIN = f"INSERT INTO node VALUES (?, ?, '{_ALIVE}', 0, ?, ?, ?, ?, ?, ?, ?, ?, {WALL}, '')"
_END_STATE = f"UPDATE node SET state = ? WHERE incarnation = ? AND state = '{_ALIVE}'"
_BEAT = (
    f"UPDATE node SET beat = beat + 1, beat_us = {WALL}, digests = ?"
    f" WHERE incarnation = ? AND state = '{_ALIVE}'"
)
_DECLARE_DEAD = (
    f"UPDATE node SET state = '{_DEAD}' WHERE incarnation = ? AND beat = ? AND state = '{_ALIVE}'"
)
# The youngest row of a name stays, so that no number is used again. The counters of the others are
# added to those of the node 0.
_FORGET = f"""
WITH gone AS (
    DELETE FROM node n WHERE state <> '{_ALIVE}' AND EXISTS (
        SELECT FROM node younger WHERE younger.name = n.name AND younger.incarnation > n.incarnation
    ) AND NOT EXISTS (
        SELECT FROM entry WHERE claimed = 1 AND owner = n.incarnation OFFSET 0
    ) RETURNING incarnation
), counted AS (
    DELETE FROM counter c USING gone WHERE c.node = gone.incarnation RETURNING c.name, c.value
)
INSERT INTO counter SELECT 0, 0, name, sum(value) FROM counted GROUP BY name
ON CONFLICT (node, number, name) DO UPDATE SET value = counter.value + excluded.value"""
NODES_MAX = 100
_LIST = f"""
SELECT name, state, version, store, since_us, greatest(0, {WALL} - beat_us), incarnation,
    (SELECT count(*) FROM entry WHERE claimed = 1 AND owner = incarnation)
FROM node ORDER BY state <> 'alive', incarnation DESC LIMIT {NODES_MAX}"""
_JUMP = "SELECT setval('event_number', ?) FROM event_number WHERE last_value < ?"
AgreedParts = Callable[[], Mapping[str, str]]
_DIGEST_BYTES = 12  # enough to tell two apart
_COST = 1 << 13  # 8 MiB, and about 25 ms for each part
_BLOCKS = 8
_MEMORY_MAX = 64 << 20
_NAMED_MAX = 3
_SET_DOMAINS = "UPDATE mail_root SET domains = ? WHERE store = ? AND domains <> ?"
_OTHERS = (
    "SELECT r.store, r.domains FROM mail_root r WHERE r.store <> ? AND EXISTS ("
    " SELECT FROM node n WHERE n.store = r.store AND n.state = 'alive' OFFSET 0) ORDER BY r.store"
)
_log = get_logger("spool")


class ServerSession(Struct, frozen=True):
    """The server's process for a connection."""

    pid: int
    begun: str
    timeline: str  # the identifier of the cluster, a slash, and its timeline


class NodeIdentity(Struct, frozen=True):
    """Who a node is, apart from its incarnation."""

    name: str  # in the settings
    home: str  # the id of its state_dir
    place: str = ""  # see place_of()
    version: str = ""  # of Relay
    store: str = "main"  # the name of the mail root to which its local mail goes
    holds_store: bool = True  # whether it has this mail root itself
    is_alone: bool = False  # its process keeps all others away: see lock_alone()


class NodeRow(Struct, frozen=True):
    """A row of `node`: an incarnation of a node."""

    incarnation: int  # its number
    state: str  # alive, stopped or dead
    beat: int  # how often it has said that it lives
    identity: NodeIdentity
    since_us: int  # when it joined, by the wall
    session: ServerSession  # of its write connection
    digests: str = ""  # of what must be equal on all nodes: see salted()

    @property
    def is_alive(self) -> bool:
        """Whether it counts as living."""
        return self.state == _ALIVE


class Stores(Struct, frozen=True):
    """The number of this node's mail root, and whether the node holds it."""

    own: int = 0
    is_held: bool = True

    def is_held_by_us(self, store: int) -> bool:
        """Whether this node delivers local mail of this store."""
        return self.is_held and store == self.own

    def turns(self, level: int, *, is_local: bool | None = None) -> list[int]:
        """Return the values of entry.turn that this node claims in a priority level; `is_local`:
        only those of local mail, or only the others.
        """
        local = [level + 8 * self.own] if self.is_held else []
        others = [level]
        if is_local is None:
            return others + local
        return local if is_local else others


def stores_of(tables: ConnectionTables, identity: NodeIdentity) -> Stores:
    """Return the number of the mail root of a node; it gets a number if it has none yet."""
    store = identity.store
    add = "INSERT INTO mail_root (store, id) VALUES (?, '') ON CONFLICT DO NOTHING"
    tables.execute(add, (store,))
    (number,) = tables.fetch_one("SELECT number FROM mail_root WHERE store = ?", (store,))
    return Stores(number, identity.holds_store)


def place_of(state_dir: Path, boot_id: str) -> str:
    """Return where a state_dir is: the machine, its boot, and the device and inode of the
    directory. A copy on the same or another machine is in another place.
    """
    try:
        machine = _MACHINE_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    status = state_dir.stat()
    return f"{machine}/{boot_id}/{status.st_dev:x}:{status.st_ino:x}"


def read_nodes(tables: ConnectionTables) -> list[NodeRow]:
    """Return all incarnations that are kept, oldest first."""
    return [
        NodeRow(
            row[0],
            row[2],
            row[3],
            NodeIdentity(row[1], row[4], row[5], row[6], row[7], holds_store=bool(row[7])),
            row[8],
            ServerSession(*row[9:12]),
            row[12],
        )
        for row in map(tuple, tables.fetch(f"{_NODES} ORDER BY incarnation"))
    ]


def node_list(tables: Tables, own: int) -> list[dict[str, Any]]:
    """Return the nodes of `queue stats`, by name; of nodes that do not live, the newest. The age of
    a beat is by the clock of the server, and is only displayed.
    """
    nodes = [
        {
            "name": name,
            "state": state,
            "version": version,
            "store": store,
            "since": rfc3339(since_us),
            "beat_age_s": age_us // 1_000_000,
            "claims": claims,
            "is_this": incarnation == own,
        }
        for name, state, version, store, since_us, age_us, incarnation, claims in map(
            tuple, tables.fetch(_LIST)
        )
    ]
    return sorted(nodes, key=lambda node: (node["name"], node["since"]))


def session_of(tables: ConnectionTables) -> ServerSession:
    """Return the session of this connection."""
    return ServerSession(*tables.fetch_one(_SESSION))


def end_session(tables: ConnectionTables, session: ServerSession) -> None:
    """End the session of a lost connection, if it still runs, and wait until it has gone.

    Raises SpoolUnavailableError if it has not gone in time.
    """
    values = (_END_MS, session.pid, session.begun, session.timeline.partition("/")[0])
    ended = tables.fetch_one(_END, values)
    if ended is not None and not ended[0]:
        raise SpoolUnavailableError(f"the server has not ended its process {session.pid} in time")


def lock_shared(tables: ConnectionTables, identity: NodeIdentity) -> None:
    """Hold the spool together with other nodes. Raises SpoolInUseError."""
    sql = "SELECT pg_try_advisory_lock_shared(?)"
    if not (identity.is_alone or tables.fetch_one(sql, (_LOCK,))[0]):
        raise SpoolInUseError("the spool is in use by a Relay that takes it for itself")


def lock_alone(tables: ConnectionTables) -> None:
    """Keep all nodes away from the spool while this connection lasts. Raises SpoolInUseError."""
    if not tables.fetch_one("SELECT pg_try_advisory_lock(?)", (_LOCK,))[0]:
        raise SpoolInUseError("a node of the spool lives, or a command uses it: stop it first")


def unlock(tables: ConnectionTables) -> None:
    """Let nodes in again."""
    tables.fetch("SELECT pg_advisory_unlock(?)", (_LOCK,))


def end_all(tables: ConnectionTables) -> None:
    """Record that the nodes of a restored spool are dead: others take over what they have."""
    tables.execute(f"UPDATE node SET state = '{_DEAD}' WHERE state = '{_ALIVE}'")


def namesakes(tables: ConnectionTables, identity: NodeIdentity) -> list[NodeRow]:
    """End earlier incarnations of this node, and return other living nodes with this name.

    A row is of this node only if its state_dir is in the same place and the machine was not
    rebooted: a copied or restored state_dir belongs to another node.
    """
    left = []
    for row in filter(lambda row: row.is_alive, read_nodes(tables)):
        if (row.identity.home, row.identity.place) == (identity.home, identity.place):
            end_session(tables, row.session)
            tables.execute(_END_STATE, (_DEAD, row.incarnation))
        elif row.identity.name == identity.name:
            left.append(row)
    return left


def still_alive(tables: ConnectionTables, left: Sequence[NodeRow]) -> Sequence[NodeRow]:
    """Watch living nodes that have this node's name; return them if they are silent. Raises
    NodeNameError if one of them beats.
    """
    seen = {row.incarnation: row.beat for row in left}
    for _ in range(_LOOKS if left else 0):
        tables.wait(asyncio.sleep(_WATCH_S / _LOOKS))  # real time: the other one beats
        for row in read_nodes(tables):
            if row.is_alive and seen.get(row.incarnation, row.beat) != row.beat:
                raise name_taken(row)
    return left


def join(
    tables: ConnectionTables,
    identity: NodeIdentity,
    *,
    at_us: int,
    silent: Sequence[NodeRow] = (),
    own: int = 0,
) -> NodeRow:
    """Join as the next incarnation, in a separate transaction, and return its row.

    `silent` are nodes of this name that did not beat when they were watched. `own` is the last
    incarnation of this process, which is dead from now on. Raises NodeNameError if another node
    uses the name. Later events have greater numbers than any before, also than those that a standby
    may have lost.
    """
    known = {(row.incarnation, row.beat) for row in silent}
    tables.execute("BEGIN")
    tables.fetch("SELECT pg_advisory_xact_lock(?)", (_JOIN_LOCK,))
    for row in read_nodes(tables):
        is_namesake = row.is_alive and row.identity.name == identity.name
        if is_namesake and (row.incarnation, row.beat) not in known and row.incarnation != own:
            raise name_taken(row)
    tables.execute(_END_STATE, (_DEAD, own))
    session = session_of(tables)
    incarnation = int(tables.fetch_one(_FIRST_FREE, (max(at_us, own + 1),))[0])
    tables.execute(
        _JOIN,
        (
            incarnation,
            identity.name,
            identity.home,
            identity.place,
            identity.version,
            identity.store if identity.holds_store else "",
            at_us,
            session.pid,
            session.begun,
            session.timeline,
        ),
    )
    jump_events(tables, at_us)
    tables.execute(_FORGET)
    tables.execute("COMMIT")
    return NodeRow(incarnation, _ALIVE, 0, identity, at_us, session)


def return_to(tables: ConnectionTables, own: NodeRow, *, at_us: int) -> NodeRow | None:
    """Continue as this incarnation on a new connection, after the old one was lost; None if the
    incarnation is dead. Raises NodeNameError if another node has the name.
    """
    end_session(tables, own.session)
    rows = read_nodes(tables)
    check_name(rows, own)
    if not any(row.incarnation == own.incarnation and row.is_alive for row in rows):
        return None
    session = session_of(tables)
    # This commit makes all that is read from now on durable too.
    tables.execute(
        "UPDATE node SET pid = ?, begun = ?, timeline = ? WHERE incarnation = ?",
        (session.pid, session.begun, session.timeline, own.incarnation),
    )
    if session.timeline != own.session.timeline:
        jump_events(tables, at_us)
    return replace(own, session=session)


def beat(tables: ConnectionTables, own: NodeRow, digests: str) -> list[NodeRow] | None:
    """Record that this node lives, with the digests of what must be equal on all nodes. Return all
    rows, None if this incarnation is dead.
    """
    if not tables.execute(_BEAT, (digests, own.incarnation)):
        return None
    rows = read_nodes(tables)
    check_name(rows, own)
    return rows


def leave(tables: ConnectionTables, own: NodeRow) -> None:
    """Record that this node has stopped."""
    tables.execute(_END_STATE, (_STOPPED, own.incarnation))


def declare_dead(tables: ConnectionTables, seen: Iterable[NodeRow]) -> list[NodeRow]:
    """Record that the nodes that still have this beat are dead; return them."""
    return [row for row in seen if tables.execute(_DECLARE_DEAD, (row.incarnation, row.beat))]


def check_name(rows: Iterable[NodeRow], own: NodeRow) -> None:
    """Raise NodeNameError if a newer incarnation with this node's name lives."""
    for row in rows:
        is_younger = row.is_alive and row.incarnation > own.incarnation
        if is_younger and row.identity.name == own.identity.name:
            raise name_taken(row)


def name_taken(row: NodeRow) -> NodeNameError:
    """Return the error for a name that another node uses."""
    return NodeNameError(
        f"another node has the name {row.identity.name} since {rfc3339(row.since_us)} and lives"
        f" (beat {row.beat}): give each node a name of its own, [spool] node"
    )


def jump_events(tables: ConnectionTables, at_us: int) -> None:
    """Number events from this time on, unless they have greater numbers already."""
    tables.fetch(_JUMP, (at_us, at_us))


class Watch:
    """Decides which other nodes are silent, by the clock of this node. Without I/O."""

    def __init__(self) -> None:
        self._since_s: dict[tuple[int, int], float] = {}  # by incarnation and beat
        self._read_s = 0.0

    def silent(self, rows: Iterable[NodeRow], own: int, *, now_s: float) -> list[NodeRow]:
        """Take a reading of all nodes at `now_s`, seconds since the boot. Return nodes that have
        been silent for so long that they count as dead. After a gap between readings, in which this
        node or the server may have been away, the measurement starts again.
        """
        if now_s - self._read_s > _GAP_S:
            self._since_s = {}
        self._read_s = now_s
        alive = {
            (row.incarnation, row.beat): row
            for row in rows
            if row.is_alive and row.incarnation != own
        }
        self._since_s = {key: self._since_s.get(key, now_s) for key in alive}
        return [alive[key] for key, since_s in self._since_s.items() if now_s - since_s >= DEAD_S]


def exchange_domains(
    tables: ConnectionTables, identity: NodeIdentity, parts: Mapping[str, str]
) -> frozenset[str]:
    """Record the local domains of a node that holds its mail root, if they have changed. Return
    other_domains().
    """
    own = parts.get(LOCAL_DOMAINS.format(identity.store))
    if own is not None and identity.holds_store:
        tables.execute(_SET_DOMAINS, (own, identity.store, own))
    return other_domains(tables, identity.store)


def other_domains(tables: ConnectionTables, store: str) -> frozenset[str]:
    """Return the local domains of all other mail roots, also of nodes that do not live."""
    rows = tables.fetch("SELECT domains FROM mail_root WHERE store <> ?", (store,))
    return frozenset(domain for row in rows for domain in row[0].split())


def salted(parts: Mapping[str, str], salt: str) -> str:
    """Return the text of a node's row: the digests of parts by their names. Takes a moment."""
    digests = {
        name: scrypt(
            value.encode(),
            salt=f"{salt}/{name}".encode(),
            n=_COST,
            r=_BLOCKS,
            p=1,
            maxmem=_MEMORY_MAX,
            dklen=_DIGEST_BYTES,
        ).hex()
        for name, value in parts.items()
    }
    return msgspec.json.encode(digests, order="sorted").decode()


def differences(rows: Iterable[NodeRow]) -> Sequence[str]:
    """Return a sentence for each part that differs between living nodes of one version, with their
    names. Another version may have other keys. A node without digests is left out.
    """
    # by part and version, then by digest, names of nodes
    by_part: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row.is_alive and row.digests:
            digests = msgspec.json.decode(row.digests, type=dict[str, str])
            for part, digest in digests.items():
                names = by_part.setdefault((part, row.identity.version), {})
                names.setdefault(digest, []).append(row.identity.name)
    return [
        f"{part}: not the same at {_groups(names.values())}"
        for (part, _), names in sorted(by_part.items())
        if len(names) > 1
    ]


def split_domains(tables: ConnectionTables, store: str, domains: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each other store of a living node that has some of these domains."""
    for other, theirs in map(tuple, tables.fetch(_OTHERS, (store,))):
        if both := sorted(set(domains) & set(theirs.split())):
            more = len(both) - _NAMED_MAX
            names = ", ".join([*both[:_NAMED_MAX], *([f"{more} more"] if more > 0 else [])])
            noun = "local domain" if len(both) == 1 else "local domains"
            yield (
                f'the stores "{store}" and "{other}" have the same {noun} {names}: each message'
                " goes to the store of the node that accepts it"
            )


def node_warnings(rows: Sequence[NodeRow]) -> Sequence[str]:
    """Return the warnings of `relay check` about the living nodes."""
    warnings = [f"nodes differ in what must be equal: {text}" for text in differences(rows)]
    if versions := _several_versions(rows):
        warnings.append(f"nodes have several versions ({versions}): bring all to the newest")
    return warnings


def _several_versions(rows: Iterable[NodeRow]) -> str:
    """Return the versions of the living nodes with their names, "" if they have one version."""
    nodes: dict[str, list[str]] = {}  # by version, their names
    for row in rows:
        if row.is_alive:
            nodes.setdefault(row.identity.version, []).append(row.identity.name)
    if len(nodes) < 2:
        return ""
    return "; ".join(f"{', '.join(names)}: {version}" for version, names in sorted(nodes.items()))


def _groups(groups: Iterable[Sequence[str]]) -> str:
    """Return the names of nodes as text. Nodes of a group are equal."""
    return " and at ".join(", ".join(names) for names in sorted(sorted(names) for names in groups))
