"""The bench of rules runs; its figures are for `make bench ARGS=rules`."""

from pathlib import Path

from tests.bench import rules


def test_each_kind_of_rule_is_read_and_matches_nothing(tmp_path: Path):
    read = rules.written(tmp_path, 2 * len(rules.KINDS), rules.KINDS)
    assert len(read.rules) == 2 * len(rules.KINDS)
    assert rules.measured(read, runs=2, rounds=1) > 0
