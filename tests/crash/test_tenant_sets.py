"""The last good rules of a tenant: after a kill or a loss of power, the old or the new ones, whole."""

import os
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

import pytest

from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.settings.tree import Tenant
from relay.operation.app.tenant_sets import LastGoodSets, TenantSet
from relay.transport.policy.rule_files import read_rules
from tests.support.forgetful import ForgetfulDisk, KilledError

pytestmark = pytest.mark.crash

ACME = Tenant("acme", ("example.test",))
RULE = '[[rule]]\nname = "{}"\nwhen = {{ sender = "group:g" }}\nthen = [ {{ hold = "x" }} ]\n'


class KeptOnDisk:
    """Sets of acme on a disk that forgets; `left_out` is the number of the sync that is."""

    def __init__(self, folder: Path, *, left_out: int = -1, killed_at: int = -1) -> None:
        self.folder, self.syncs = folder, 0
        self.hashes: list[str] = []
        self.left_out, self.killed_at = left_out, killed_at
        self.disk = ForgetfulDisk(folder / "state")
        self.disk.fate = self._fate

    def _fate(self, _site: str) -> str:
        self.syncs += 1
        if self.syncs - 1 == self.killed_at:
            return "is never reached"
        return "is left out" if self.syncs - 1 == self.left_out else "works"

    def keep(self, name: str) -> None:
        source = self.folder / name
        (source / "groups").mkdir(parents=True)
        (source / "10.toml").write_text(RULE.format(name))
        (source / "groups/g.txt").write_text("a@example.test\n")
        rules = read_rules(source, tenant=ACME)
        made = TenantSet(ACME, rules, 1_000_000 if name == "old" else 2_000_000)
        self.hashes.append(rules.digest)
        self.syncs = 0
        LastGoodSets(self.folder / "state", CrashPoints()).keep(made, rules, source)

    def found(self) -> set[str]:
        """What starts may find after a loss of power now, "" for nothing."""
        found = set()
        for left in self.disk.after_loss(self.folder / f"left-{self.syncs}"):
            for number, name in enumerate(self.hashes):  # the newer one is tried first
                with suppress(FileNotFoundError):
                    os.utime(left / "policies/acme" / name, (number, number))
            kept = LastGoodSets(left, CrashPoints()).load(ACME)
            found.add(" ".join(one.name for one in kept.rules.rules) if kept and kept.rules else "")
        return found


FIRST_SYNCS = 7  # two files, two directories, and the three above


@pytest.mark.parametrize("left_out", range(-1, FIRST_SYNCS))
def test_each_sync_of_the_first_set_is_needed(tmp_path: Path, left_out: int) -> None:
    kept = KeptOnDisk(tmp_path, left_out=left_out)
    with kept.disk:
        kept.keep("new")
        assert kept.syncs == FIRST_SYNCS
        assert (kept.found() == {"acme/new"}) is (left_out < 0)


@pytest.mark.parametrize("killed_at", range(-1, FIRST_SYNCS + 1))
def test_there_is_always_the_old_or_the_new_set(tmp_path: Path, killed_at: int) -> None:
    kept = KeptOnDisk(tmp_path)
    with kept.disk:
        kept.keep("old")
        kept.disk.settle()
        kept.killed_at = killed_at
        with suppress(KilledError):
            kept.keep("new")
        found = kept.found()
    assert found <= {"acme/old", "acme/new"}
    assert (found == {"acme/new"}) is (killed_at not in range(5))  # the directory is synced fifth


def test_a_kill_between_keeping_and_using_a_set(tmp_path: Path, serve) -> None:
    relay = serve()
    home = relay.folder / "policies/acme"
    (home / "groups").mkdir(parents=True)
    (home / "groups/g.txt").write_text("a@example.test\n")
    (home / "10.toml").write_text(RULE.format("old"))
    old = read_rules(home).digest
    tenant = {"name": "acme", "domains": ["example.test"]}
    relay.write_config({**relay.config, "tenant": [tenant]})
    relay.restart()
    relay.restart(crash_at=CrashPoint.TENANT_SET_KEPT)
    (home / "10.toml").write_text(RULE.format("new"))
    new = read_rules(home).digest
    assert relay.cli("reload").returncode != 0
    assert relay.wait_end() == -SIGKILL
    kept = relay.folder / "state/policies/acme"
    assert {one.name for one in kept.iterdir()} == {old, new}
    (home / "10.toml").write_text("[[rule")
    relay.start()
    assert relay.request("GET", "/readyz").body.startswith(b"ready; old rules are in force")
    [told] = [one for one in relay.log.splitlines() if "in_force" in one]
    assert any(f"the last good ones, {one}" in told for one in (old, new))
    (home / "10.toml").write_text(RULE.format("new"))
    relay.restart()
    assert [one.name for one in kept.iterdir()] == [new]
