"""The bench of memory runs; its figures are for `make bench ARGS=memory`."""

import re
from pathlib import Path

import pytest

from tests.bench import memory
from tests.support.long_tests import long


def test_each_mapping_counts_once():
    sizes = memory.kinds_of(Path("/proc/self/smaps").read_text())
    rollup = Path("/proc/self/smaps_rollup").read_text()
    total_bytes = int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) * 1024
    assert set(sizes) <= set(memory.KINDS)
    assert sizes.total() == pytest.approx(total_bytes, rel=0.1)  # it goes on in the meantime


@long
def test_a_relay_is_measured(monkeypatch):
    monkeypatch.setattr(memory, "IDLE_S", 0.1)
    sizes, processes, threads = memory.idle("smtp")
    assert 20 < sizes.total() / 1e6 < 200
    assert (processes, threads > 5) == (1, True)
    found = memory.traced("smtp")
    assert "relay.ingress" in found["modules"]
    assert {"code", "relay/spool", "dns"} <= set(found["allocated"])
