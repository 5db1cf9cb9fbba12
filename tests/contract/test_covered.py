"""Each method of a spool that another room uses is used by a test of this directory."""

import ast
import re
from pathlib import Path

import relay
from relay.store.journeys.spool_history import SpoolHistory
from relay.store.spool.engine import DevelopmentSpool, SpoolEngine, SpoolStorage
from relay.store.spool.shared.maintenance import SpoolMaintenance
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.shared.receipts import ReceiptLedger
from relay.store.spool.types import IncomingBody, LendableBody
from tests.support import spool_fixtures

PROTOCOLS = (
    SpoolHistory,
    SpoolEngine,
    SpoolMaintenance,
    ReceiptLedger,
    QueueAdmin,
    IncomingBody,
    LendableBody,
    SpoolStorage,
    DevelopmentSpool,
)


def test_every_method_is_used() -> None:
    sources = [*Path(__file__).parent.glob("*.py"), Path(spool_fixtures.__file__)]
    used = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute)
    }
    declared = {
        name
        for one in PROTOCOLS
        for name, member in vars(one).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }
    other_rooms = [one for one in Path(relay.__path__[0]).rglob("*.py") if "spool" not in one.parts]
    needed = {name for one in other_rooms for name in re.findall(r"\.(\w+)", one.read_text())}
    assert len(declared & needed) > 40
    for_engines = {"added", "ask", "follow", "has_room", "take_over"}  # names of others too
    assert (declared & needed) - used - for_engines == set()
