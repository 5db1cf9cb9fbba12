"""Which submissions the store's log knows the end of, and which it does not.

On the path: `relay storage verify`; no step comes here.
Holds: the log is read once from its first day to its last, in memory that grows with what is open.
Fails: OSError when the disk refuses; a damaged line is skipped.
Standards: none.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from relay.journeys.events import Step

_LINE_BYTES_MAX = 1 << 20
_DAY_CHARACTERS = 10


@dataclass(frozen=True, slots=True)
class OpenSubmission:
    """A submission that was notified, when, and by whom."""

    account: str
    draft_id: str
    at_us: int


@dataclass(slots=True)
class Submissions:
    """`accepted`: those whose step 4 is recorded, among the ones that were asked for.

    `open`: by submission id, those that were notified and came to no end.
    """

    accepted: set[str] = field(default_factory=set)
    open: dict[str, OpenSubmission] = field(default_factory=dict)


def read_submissions(directory: Path, *, among: Collection[str]) -> Submissions:
    """Read the log of all roles. Raises OSError."""
    found = Submissions()
    for _, files in groupby(_files(directory), key=lambda path: path.name[:_DAY_CHARACTERS]):
        ended: set[str] = set()
        for path in files:
            _read_file(path, found, ended, among=among)
        for submission_id in ended & found.open.keys():
            del found.open[submission_id]
    return found


def _read_file(
    path: Path, found: Submissions, ended: set[str], *, among: Collection[str]
) -> None:  # fmt: skip
    names: dict[str, tuple[str, str]] = {}
    for told in _lines(path):
        submission_id, step = str(told.get("submission_id")), told.get("step")
        detail = told.get("detail") or {}
        if step == Step.CREATED:
            names[submission_id] = str(told.get("account")), str(told.get("graph_id"))
        elif step == Step.NOTIFIED and submission_id in names:
            account, draft_id = names.pop(submission_id)
            at_us = int(told.get("at_us", 0))
            found.open[submission_id] = OpenSubmission(account, draft_id, at_us)
        elif step in (Step.ACCEPTED, Step.REPORT) or told.get("withdrawn") or "cancelled" in detail:
            ended.add(submission_id)
            if step == Step.ACCEPTED and submission_id in among:
                found.accepted.add(submission_id)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:  # pruned meanwhile
        return
    with file:
        while line := file.readline(_LINE_BYTES_MAX):
            try:
                told = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if isinstance(told, dict):
                yield told


def _files(directory: Path) -> list[Path]:
    """Oldest day first."""
    try:
        names = [path for path in directory.iterdir() if path.name[:1].isdigit()]
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda path: (path.name[:_DAY_CHARACTERS], path.name))
