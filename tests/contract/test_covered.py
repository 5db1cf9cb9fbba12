"""Each method of a spool's Protocols is used by a test of this directory."""

import ast
from pathlib import Path

from relay.journeys.spool_history import SpoolHistory
from relay.spool.engine import (
    DevelopmentSpool,
    ReceiptLedger,
    SpoolEngine,
    SpoolMaintenance,
    SpoolStorage,
    SpoolTools,
)
from relay.spool.queue_commands import QueueAdmin
from relay.spool.types import IncomingBody, LendableBody, Spool
from tests.support import spool_fixtures

PROTOCOLS = (
    Spool, SpoolHistory, SpoolEngine, SpoolMaintenance, ReceiptLedger, QueueAdmin, IncomingBody,
    LendableBody, SpoolStorage, SpoolTools, DevelopmentSpool,
)  # fmt: skip


def test_every_method_is_used() -> None:
    sources = [*Path(__file__).parent.glob("*.py"), Path(spool_fixtures.__file__)]
    used = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute)
    }
    declared = {
        name for one in PROTOCOLS for name, member in vars(one).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }  # fmt: skip
    assert len(declared) > 40
    assert declared - used == set()
