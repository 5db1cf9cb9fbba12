"""Whether the nodes have the same of what must be equal on all: rules, routes, keys and so on.

Each node writes a digest of each part into its row. Some of what they are made of are secrets that
a person may have chosen, so that the digests must be costly to try out: they are made by scrypt,
with a salt that only this spool has. And what two stores must not both have: a local domain.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import scrypt

import msgspec

from relay.spool.engine import LOCAL_DOMAINS
from relay.spool.postgres.nodes import NodeIdentity, NodeRow
from relay.spool.postgres.tables import ConnectionTables
from relay.spool.postgres.transactions import WriteTransaction

AgreedParts = Callable[[], Mapping[str, str]]
_BYTES = 12  # enough to tell two apart
_COST = 1 << 13  # 8 MiB, and about 25 ms for each part
_BLOCKS = 8
_MEMORY_MAX = 64 << 20
_NAMED_MAX = 3
_SET_DOMAINS = "UPDATE mail_root SET domains = ? WHERE store = ? AND domains <> ?"
_OTHERS = (
    "SELECT r.store, r.domains FROM mail_root r WHERE r.store <> ? AND EXISTS ("
    " SELECT FROM node n WHERE n.store = r.store AND n.state = 'alive' OFFSET 0) ORDER BY r.store"
)


def exchange_domains(
    tables: ConnectionTables, identity: NodeIdentity, parts: Mapping[str, str]
) -> frozenset[str]:
    """Record the local domains of a node that holds its mail root, if they were others before;
    return other_domains().
    """
    own = parts.get(LOCAL_DOMAINS.format(identity.store))
    if own is not None and identity.holds_store:
        tables.execute(_SET_DOMAINS, (own, identity.store, own))
    return other_domains(tables, identity.store)


def other_domains(tables: ConnectionTables, store: str) -> frozenset[str]:
    """Return the local domains of all other mail roots, also of nodes that do not live."""
    found = tables.fetch("SELECT domains FROM mail_root WHERE store <> ?", (store,))
    return frozenset(domain for row in found for domain in row[0].split())


def read_salt(transaction: WriteTransaction) -> str:
    """Return the salt of this spool."""
    transaction.has_changed = False
    return str(transaction.fetch_one("SELECT value FROM salt")[0])


def salted(parts: Mapping[str, str], salt: str) -> str:
    """Return the text of a node's row: the digests of parts by their names. Takes a moment."""
    digests = {
        name: scrypt(
            value.encode(), salt=f"{salt}/{name}".encode(), n=_COST, r=_BLOCKS, p=1,
            maxmem=_MEMORY_MAX, dklen=_BYTES,
        ).hex()
        for name, value in parts.items()
    }  # fmt: skip
    return msgspec.json.encode(digests, order="sorted").decode()


def differences(rows: Iterable[NodeRow]) -> Sequence[str]:
    """Return what differs between which nodes that live: a sentence for each part. A node that has
    not said yet, and a part that only one knows, differ from none.
    """
    found: dict[str, dict[str, list[str]]] = {}  # by part and digest, the names of nodes
    for row in rows:
        if row.is_alive and row.digests:
            digests = msgspec.json.decode(row.digests, type=dict[str, str])
            for part, digest in digests.items():
                found.setdefault(part, {}).setdefault(digest, []).append(row.identity.name)
    return [
        f"{part}: not the same at {_groups(names.values())}"
        for part, names in sorted(found.items())
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
    """Return what `relay check` says of the nodes that live."""
    versions = _several_versions(rows)
    return [
        *(f"nodes differ in what must be equal: {one}" for one in differences(rows)),
        *([f"nodes have several versions ({versions}): bring all to the newest"] * bool(versions)),
    ]


def _several_versions(rows: Iterable[NodeRow]) -> str:
    """Return which versions the nodes that live have, "" if it is one."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.is_alive:
            found.setdefault(row.identity.version, []).append(row.identity.name)
    if len(found) < 2:
        return ""
    return "; ".join(f"{', '.join(names)}: {version}" for version, names in sorted(found.items()))


def _groups(groups: Iterable[Sequence[str]]) -> str:
    """Return names of nodes, of which those with a comma between them are equal."""
    return " and at ".join(", ".join(one) for one in sorted(sorted(one) for one in groups))
