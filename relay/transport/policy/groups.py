"""Read the groups of a policy directory: lists of addresses for `sender` and `recipient`.

groups/NAME.txt is the group NAME. The group "own" is built in and has the addresses of own domains.
Each line is an address or a domain; a domain stands for all its addresses. Blank lines are ignored,
and so are lines that begin with #.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from relay.base.message.address import AddressError, parse_mailbox
from relay.base.phrases import shown
from relay.base.settings.document import Fault, SettingsError, read_text
from relay.base.settings.values import GROUPS_DIRECTORY
from relay.transport.policy.globs import Globs, Groups

OWN_GROUP = "own"
# limit of rules: groups
GROUPS_MAX = 500
GROUP_LINES_MAX = 10_000
_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def visible_files(suffix: str, *directories: Path) -> tuple[Path, ...]:
    """Return the files with a suffix in the order of their names, without hidden ones. A file
    replaces that of the same name in the directories before. Raises OSError.
    """
    paths = (path for directory in directories for path in directory.iterdir())
    files = {path.name: path for path in paths if path.suffix == suffix}
    return tuple(files[name] for name in sorted(files) if not name.startswith("."))


def other_directories(directory: Path, *known: str) -> tuple[Path, ...]:
    """Return the other directories in a directory of rules, which are not read.

    `groups`, the `known` ones and hidden ones are left out.
    """
    names = (*known, GROUPS_DIRECTORY, "lost+found")
    with suppress(OSError):
        paths = sorted(path for path in directory.iterdir() if path.name not in names)
        return tuple(path for path in paths if path.is_dir() and not path.name.startswith("."))
    return ()


def is_inside(path: Path, directory: Path) -> bool:
    """Return whether a path leads to a file below `directory`; false if `directory` is a link."""
    try:
        return path.resolve().is_relative_to(directory) and not directory.is_symlink()
    except (OSError, RuntimeError):  # a circle of links
        return False


def group_files(
    directory: Path, faults: list[Fault], *, shipped: Path | None = None
) -> tuple[Path, ...]:
    """Return the files of the groups in the policy directory, and of those that are shipped, in the
    order of their names.
    """
    folder = directory / GROUPS_DIRECTORY
    folders = [shipped / GROUPS_DIRECTORY, folder] if shipped else [folder]
    try:
        files = visible_files(".txt", *(path for path in folders if path.exists()))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        faults.append(Fault(folder, 0, "", f"found no folder ({reason}), expected one of groups"))
        return ()
    if len(files) > GROUPS_MAX:
        message = f"found {len(files)} groups, expected at most {GROUPS_MAX}"
        faults.append(Fault(folder, 0, "", message))
        return ()
    return files


def read_groups(files: tuple[Path, ...], faults: list[Fault]) -> tuple[Groups, str]:
    """Return the groups by their names, and the text of all files, which changes with them.

    A group with a fault is returned as well, so that rules that name it get no fault.
    """
    groups: dict[str, Globs] = {}
    texts = []
    for file in files:
        if not _name.fullmatch(file.stem):
            message = f"found the name {shown(file.name)}, expected a-z, 0-9, dot, - and _ in it"
            faults.append(Fault(file, 0, "", message))
            continue
        if file.stem == OWN_GROUP:
            message = "found the name of a built-in group, expected another one"
            faults.append(Fault(file, 0, "", message))
            continue
        groups[file.stem] = Globs()
        try:
            text = read_text(file)
        except SettingsError as error:
            faults += error.faults
            continue
        lines = text.split("\n")
        if len(lines) > GROUP_LINES_MAX:
            message = f"found {len(lines)} lines, expected at most {GROUP_LINES_MAX}"
            faults.append(Fault(file, GROUP_LINES_MAX + 1, "", message))
            continue
        groups[file.stem] = _group(file, lines, faults)
        texts.append(f"{file.name}\n{text}")
    return groups, "".join(texts)


class OptionalGroups(dict[str, Globs]):
    """The groups for a rule that is off: a missing group is empty, and recorded in `missing`."""

    missing = ""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Globs:
        self.missing = name
        return Globs()


def _group(file: Path, lines: list[str], faults: list[Fault]) -> Globs:
    addresses, domains = set(), set()
    for number, line in _entries(lines):
        try:
            if "@" in line:
                addresses.add(Globs.folded(parse_mailbox(line, smtputf8=True)))
            else:
                domains.add(parse_mailbox(f"x@{line}", smtputf8=True)[2:])
        except AddressError:
            message = f"found {shown(line)}, expected an address or a domain"
            faults.append(Fault(file, number, "", message))
    return Globs(whole=frozenset(addresses), domains=frozenset(domains))


def _entries(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank and no comments, with their numbers."""
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield number, entry
