"""Local domains that two stores have: where their mail goes depends on the node that accepts it."""

from collections.abc import Collection, Iterator

from relay.spool.postgres.tables import ConnectionTables

_NAMED_MAX = 3
_OTHERS = (
    "SELECT r.store, r.domains FROM mail_root r WHERE r.store <> ? AND EXISTS ("
    " SELECT FROM node n WHERE n.store = r.store AND n.state = 'alive' OFFSET 0) ORDER BY r.store"
)


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
