"""Accept another mail root: `relay storage adopt`.

A start takes only the mail root that the spool knows (relay/mailbox/mail_root.py). The operator
decides about any other, while no relay runs. Nothing is moved or removed.
"""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from relay import spool
from relay.app.state_dir import OwnerLock, as_owner
from relay.base.clock import Clock
from relay.commands.offline import opened_spool
from relay.mailbox.mail_root import NEW_ID, read_id, write_id
from relay.observe.logs import get_logger
from relay.settings.tree import Settings

_log = get_logger("commands")


class NotAdoptedError(Exception):
    """The mail root is not what the operator named, or was not confirmed."""


class FoundRoot(Struct, frozen=True):
    """A mail root and its id, and the id that the spool knows; "" where there is none."""

    path: str
    id: str
    known_id: str


def adopt(
    settings: Settings, clock: Clock, root_id: str, *, confirm: Callable[[FoundRoot], bool]
) -> FoundRoot:
    """Record the id of the mail root in the spool; with NEW_ID give it one before.

    `confirm` is asked first. Returns the root with its id, and the id that was known before. Raises
    NotAdoptedError, AlreadyRunningError, SpoolError, OSError.
    """
    with as_owner(settings):
        if not spool.storage(settings).exists():
            raise NotAdoptedError(
                "there is no spool yet: a start takes the mail root that is there"
            )
        with OwnerLock(settings.run_dir):
            return asyncio.run(_adopt(settings, clock, root_id, confirm=confirm))


async def _adopt(
    settings: Settings, clock: Clock, root_id: str, *, confirm: Callable[[FoundRoot], bool]
) -> FoundRoot:
    path = settings.mailboxes.root
    if not path.is_dir():
        raise NotAdoptedError(f"{path} is no directory; is its file system mounted?")
    found_id = read_id(path)
    if found_id != root_id and (found_id or root_id != NEW_ID):
        has = f"the id {found_id}" if found_id else f"no id: expected {NEW_ID}"
        raise NotAdoptedError(f"{path} has {has}")
    store = settings.mailboxes.store
    async with opened_spool(settings, clock) as engine:
        known_id, _ = await engine.mail_root(store)
        if not confirm(FoundRoot(str(path), found_id, known_id)):
            raise NotAdoptedError("nothing was changed")
        adopted = FoundRoot(str(path), found_id or write_id(path), known_id)
        await engine.record_mail_root(store, adopted.id, instead_of=known_id)
    _log.warning("mail root adopted", path=adopted.path, id=adopted.id, before=known_id)
    return adopted
