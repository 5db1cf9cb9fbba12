"""Mail roots that join one spool at the same time."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

from relay.operation.app import maintenance
from relay.store.mailbox.mail_root import ForeignRootError, MailRoot
from relay.store.spool.postgres.nodes import NodeIdentity
from tests.support.spool_nodes import open_node


async def test_of_two_mail_roots_that_come_at_once_one_has_the_name(
    postgres_url: str, tmp_path: Path
) -> None:
    """Both have found that the store has none."""
    async with AsyncExitStack() as stack:
        attendants = []
        for name in ("one", "two"):
            spool = open_node(postgres_url, tmp_path, NodeIdentity(name, name))
            await spool.start()
            stack.push_async_callback(spool.stop)
            root = MailRoot(tmp_path / name)
            stack.callback(root.close)
            attendant = maintenance.MailRootAttendant(
                root, SimpleNamespace(), spool, name="main", is_shared=True
            )
            await attendant.open(takes_any=False)
            attendants.append((attendant, root))
        recording = (attendant.record_id() for attendant, _ in attendants)
        results = await asyncio.gather(*recording, return_exceptions=True)
        (lost,) = (one for one in results if one is not None)
        assert isinstance(lost, ForeignRootError)
        assert '[mailboxes] store = "second", not "main"' in str(lost)
        _, winner = attendants[results.index(None)]
        assert (await spool.mail_root("main"))[0] == winner.id
