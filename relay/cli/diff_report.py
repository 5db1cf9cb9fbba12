"""What `relay policy diff` prints: each file as soon as it is compared, the sums at the end.

Text, or with --json a line for each file and one for the sums. At most SHOWN_MAX files are printed,
the others counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from relay.base.phrases import counted
from relay.cli.output import print_json_line, print_lines
from relay.cli.rule_lines import verdict_lines
from relay.commands.rule_diff import Difference
from relay.message.verdict import ExaminedMessage

SHOWN_MAX = 10_000
_LINES_MAX = 20  # of a file, of each kind


class DiffReport:
    """Prints, and counts."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = self._changed = 0
        self._skipped, self._known_by = Counter[str](), Counter[str]()

    def add(self, file: Path, mail: tuple[ExaminedMessage, str], found: Difference | None) -> None:
        """Count a message, and print how its results differ. `mail` is as SavedMailReader reads."""
        message, known_by = mail
        self._known_by[known_by] += 1
        if found is not None:
            self._changed += 1
            facts = {"file": str(file), "envelope": known_by, "from": message.reverse_path}
            self._show(facts | to_builtins(found), lambda: _lines(str(file), found))

    def skip(self, place: Path, reason: str) -> None:
        """Count a file or directory that is not compared, and print why."""
        self._skipped[reason] += 1
        self._show({"file": str(place), "skipped": reason}, lambda: [f"{place}: skipped: {reason}"])

    def end(self, rules: list[dict[str, Any]], why_no_journeys: str) -> None:
        """Print the sums."""
        more = self._changed + self._skipped.total() - self._shown
        sums = {"compared": self._known_by.total(), "changed": self._changed}
        sums["unchanged"] = sums["compared"] - self._changed
        if self._as_json:
            others = {"skipped": self._skipped, "not_shown": more, "envelopes": self._known_by}
            print_json_line(sums | others | {"without_journeys": why_no_journeys, "rules": rules})
            return
        lines = [f"and {counted(more, 'more file')}"] if more else []
        lines.append(f"{'old':>8} {'new':>8}  rule")
        for one in rules:
            if one["old"] != 0 or one["new"] != 0:
                old, new = ("-" if one[name] is None else one[name] for name in ("old", "new"))
                lines.append(f"{old:>8} {new:>8}  {one['rule']}")
        skipped = ", ".join(f"{number} {reason}" for reason, number in self._skipped.items())
        lines.append(
            f"{counted(sums['compared'], 'file')} compared: {self._changed} changed, "
            f"{sums['unchanged']} unchanged; skipped: {skipped or 'none'}"
        )
        known = ", ".join(f"{number} of a {name}" for name, number in self._known_by.items())
        reason = f" ({why_no_journeys})" if why_no_journeys else ""
        print_lines([*lines, f"envelopes: {known or 'none'}{reason}"])

    def _show(self, document: Mapping[str, Any], lines: Callable[[], list[str]]) -> None:
        if self._shown < SHOWN_MAX:
            self._shown += 1
            if self._as_json:
                print_json_line(document)
            else:
                print_lines(lines())


def _lines(file: str, found: Difference) -> list[str]:
    old, new = _outcome_lines(found.old), _outcome_lines(found.new)
    lines = _cut(f"- {each}" for each in old if each not in new)
    lines += _cut(f"+ {each}" for each in new if each not in old)
    lines += _cut(f"~ {each}: {', '.join(names)}" for each, names in found.contents.items())
    first = f"{file}: {', '.join(found.rules) or 'no rule'}"
    return [first, *(lines or ["~ what only --json shows"])]


def _outcome_lines(document: Mapping[str, Any]) -> list[str]:
    if error := document.get("error"):
        return [f"the rules cannot be applied: {error}", f"verdict: {document['verdict']}"]
    sender = [f"sender: {document['sender']}"] if document["sender"] else []
    return [*sender, *verdict_lines({**document, "rules": (), "charges": ()})]


def _cut(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    more = len(found) - _LINES_MAX
    return [*found[:_LINES_MAX], f"  and {more} more"] if more > 0 else found
