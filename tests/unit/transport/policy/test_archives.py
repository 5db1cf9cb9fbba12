"""What conditions see in archives; hostile ones; the process that looks into them."""

import io
import itertools
import os
import random
import struct
import threading
import zipfile
from pathlib import Path

import pytest

from relay.base.message.header import ParsedContent
from relay.base.message.verdict import VerdictAction
from relay.transport.policy import archives
from relay.transport.policy.archive_child import ArchiveRequest, examine
from relay.transport.policy.archives import ENTRIES_MAX, MessageArchives, archive_contents, reader
from relay.transport.policy.content_conditions import AttachmentCondition
from relay.transport.policy.engine import EvaluationStoppedError
from relay.transport.policy.message_parts import message_parts
from relay.transport.policy.message_view import UndecidedError
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import rule
from tests.unit.transport.policy.test_content_conditions import PE, PE_TYPE, mixed, part, view_of

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
PACKAGE = "EncryptedPackage".encode("utf-16-le")
TAR = b"a.exe".ljust(257, b"\0") + b"ustar\x0000"
EXE = {"inside": True, "name": "*.exe"}
OCTETS_MAX = archives.INFLATED_OCTETS_MAX // 20


@pytest.fixture(autouse=True)
def _little_is_inflated(monkeypatch):
    monkeypatch.setattr(archives, "INFLATED_OCTETS_MAX", OCTETS_MAX)


def zipped(*entries, method=zipfile.ZIP_DEFLATED, force_zip64=False):
    octets = io.BytesIO()
    with zipfile.ZipFile(octets, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=force_zip64) as file:
                file.write(content)
    return octets.getvalue()


def nested(depth, content=b"MZ"):
    found = zipped(("a.exe", content))
    for number in range(1, depth):
        found = zipped((f"{number}.zip", found))
    return found


def streamed(name, content, method=zipfile.ZIP_STORED):
    """A ZIP file with a data descriptor: its local header has no sizes."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.octets = bytearray()

        def writable(self):
            return True

        def write(self, octets):
            self.octets += octets
            return len(octets)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        archive.writestr(name, content)
    return bytes(pipe.octets)


def changed(octets, field, value, *, sizes=1, places=3):
    """A ZIP file of one entry with another value in a field of 2 or 4 octets, by its place in the
    entry of the directory (`places` & 1) and in the local header (& 2).
    """
    found = bytearray(octets)
    in_directory, in_header = field
    code = struct.pack("<H" if sizes == 1 else "<I", value)
    both = (octets.rindex(b"PK\1\2") + in_directory, in_header)
    for place in [one for at, one in enumerate(both) if places >> at & 1]:
        found[place : place + len(code)] = code
    return bytes(found)


FLAGS, METHOD, SIZE = (8, 6), (10, 8), (24, 22)
SMALL = zipped(("a.exe", b"MZ" * 500))
BOMB = nested(3, bytes(2 << 20)).replace(b"a.exe", b"a.txt")


def overlapping(copies=1000):
    """A ZIP file of 42 kB and 4 GB: all entries have the same octets."""
    one = zipped(("a", bytes(4 << 20)))
    at = one.rindex(b"PK\1\2")
    end = one.rindex(b"PK\5\6")
    directory = one[at:end] * copies
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, copies, copies, len(directory), at, 0)
    return one[:at] + directory + tail


def bomb(method):
    return zipped(("a.exe", bytes(OCTETS_MAX + 1)), method=method)


def with_directory(front, directory, count):
    """Octets, a directory and its end record."""
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(front), 0)
    return front + directory + end


def damaged_directories(entries, copies=23):
    """ZIP files inside one, of which each has a long directory with a damaged last record."""
    one = zipped(("a", b""))
    record = one[one.rindex(b"PK\1\2") : one.rindex(b"PK\5\6")]
    front = one[: one.rindex(b"PK\1\2")]
    inner = with_directory(front, record * entries + bytes(46), min(entries, 65535))
    return zipped(*((f"{number}.zip", inner) for number in range(copies)))


def empty_blocks():
    """A ZIP file of 500 kB whose entries all have the same 500 kB, which inflate to nothing."""
    data = b"\0\0\0\xff\xff" * 100_000 + b"\1\0\0\xff\xff"
    one = zipped(("a", b""))
    at = one.rindex(b"PK\1\2")
    head, record = bytearray(one[:31]), bytearray(one[at : one.rindex(b"PK\5\6")])
    head[14:26] = record[16:28] = struct.pack("<3I", 0, len(data), 0)
    return with_directory(bytes(head) + data, bytes(record) * 300, 300)


def commented(octets, comment):
    return octets[:-2] + struct.pack("<H", len(comment)) + comment


def unlisted():
    """The directory names the second of two entries."""
    both = zipped(("a.exe", b"MZ"), ("b.txt", b""))
    at, end = both.rindex(b"PK\1\2"), both.rindex(b"PK\5\6")
    return with_directory(both[: both.index(b"PK\1\2")], both[at:end], 1)


def behind_stream():
    """An entry whose size is behind it, and is so large that another entry is in it."""
    front = streamed("b.txt", b"x" * 99, zipfile.ZIP_DEFLATED)
    at, end = front.rindex(b"PK\1\2"), front.rindex(b"PK\5\6")
    record, hidden = bytearray(front[at:end]), SMALL[: SMALL.index(b"PK\1\2")]
    record[20:24] = struct.pack("<I", at - 35 + len(hidden))
    return with_directory(front[:at] + hidden, bytes(record), 1)


def signed():
    """As Android packages are: a block before the directory."""
    at, end = SMALL.rindex(b"PK\1\2"), SMALL.rindex(b"PK\5\6")
    return with_directory(SMALL[:at] + b"APK Sig Block 42".rjust(4096), SMALL[at:end], 1)


OTHER = zipped(("b.txt", b""))
HALF = zipped(*((f"{number}.txt", b"") for number in range(ENTRIES_MAX // 2)))
MANY = zipped(*((f"{number}.txt", b"") for number in range(2 * ENTRIES_MAX)))
CONTENTS = {
    # archive, or what makes it if that takes long: names found, what it is, bound
    "plain": (SMALL, ["a.exe"], "", ""),
    "stored": (zipped(("a.exe", b""), method=zipfile.ZIP_STORED), ["a.exe"], "", ""),
    "a path": (zipped(("../x/a.exe", b""), ("..\\b.js", b"")), ["a.exe", "b.js"], "", ""),
    "a folder": (zipped(("x.exe/", b""), ("x.exe/a", b"")), ["a"], "", ""),
    "no name": (zipped(("a.exe", b"MZ"), ("", b"MZ")), ["a.exe", ""], "", ""),
    "twice": (zipped(("a.js", b""), ("b.js", b"")).replace(b"b.", b"a."), ["a.js"] * 2, "", ""),
    "a prefix": (b"any" * 999 + SMALL, ["a.exe"], "", ""),
    "more behind": (SMALL + b"any", ["a.exe"], "", ""),
    "zip64": (zipped(("a.exe", b""), force_zip64=True), ["a.exe"], "", ""),
    "streamed": (streamed("a.exe", b"MZ"), ["a.exe"], "", ""),
    "truncated": (SMALL[:-30], [], "unreadable", ""),
    "damaged": (SMALL[:40] + b"???" + SMALL[43:], ["a.exe"], "unreadable", ""),
    "a size too small": (changed(SMALL, SIZE, 10, sizes=2), ["a.exe"], "unreadable", ""),
    "a size too large": (changed(SMALL, SIZE, 1 << 31, sizes=2), ["a.exe"], "", ""),
    "encrypted": (changed(SMALL, FLAGS, 1), ["a.exe"], "encrypted", ""),
    "aes": (changed(SMALL, METHOD, 99), ["a.exe"], "encrypted", ""),
    "encrypted directory": (changed(SMALL, FLAGS, 0x2001)[:-60], [], "unreadable", ""),
    "another method": (changed(SMALL, METHOD, 93), ["a.exe"], "unreadable", ""),
    "bzip2": (zipped(("a.exe", b"MZ"), method=zipfile.ZIP_BZIP2), ["a.exe"], "", ""),
    "lzma": (zipped(("a.exe", b"MZ"), method=zipfile.ZIP_LZMA), ["a.exe"], "", ""),
    "a bzip2 bomb": (lambda: bomb(zipfile.ZIP_BZIP2), ["a.exe"], "unreadable", None),
    "an lzma bomb": (lambda: bomb(zipfile.ZIP_LZMA), ["a.exe"], "unreadable", None),
    "three deep": (nested(3), ["2.zip", "1.zip", "a.exe"], "", ""),
    "five deep": (nested(5), ["4.zip", "3.zip", "2.zip"], "unreadable", "archives inside"),
    "a docx": (zipped(("word/vbaProject.bin", OLE)), ["vbaproject.bin"], "", ""),
    "another inside": (zipped(("a.7z", b"7z\xbc\xaf\x27\x1c")), ["a.7z"], "unreadable", ""),
    "encrypted inside": (
        zipped(("a.zip", changed(SMALL, FLAGS, 1))),
        ["a.zip", "a.exe"],
        "encrypted",
        "",
    ),
    "2,000 entries": (MANY, [], "unreadable", "number of entries"),
    "1,001 entries in two": (
        zipped(("a.zip", HALF), ("b.zip", HALF)),
        None,
        "unreadable",
        "number of entries",
    ),
    "damaged directories": (
        lambda: damaged_directories(20_000),
        None,
        "unreadable",
        "number of entries",
    ),
    "small ones": (lambda: damaged_directories(100, 20), None, "unreadable", "number of entries"),
    "empty blocks": (empty_blocks, None, "unreadable", "inflated"),
    # programs differ in what is in these
    "two": (SMALL + OTHER, ["b.txt"], "unreadable", ""),
    "two behind others": (b"x" + SMALL + bytes(70_000) + OTHER, ["b.txt"], "unreadable", ""),
    "two inside": (zipped(("a.zip", SMALL + OTHER)), ["a.zip", "b.txt"], "unreadable", ""),
    "an end in the comment": (commented(SMALL, zipped()), [], "unreadable", ""),
    "one in the comment": (commented(SMALL, OTHER), ["b.txt"], "unreadable", ""),
    "an empty end": (SMALL[: SMALL.rindex(b"PK\5\6")] + zipped(), [], "unreadable", ""),
    "damaged behind others": (b"x" + SMALL.replace(b"PK\1\2", b"PK\1\3"), [], "unreadable", ""),
    "an entry not listed": (unlisted(), ["b.txt"], "unreadable", ""),
    "one behind a stream": (behind_stream(), ["b.txt"], "unreadable", ""),
    "a size that differs": (
        changed(SMALL, (20, 18), 9, sizes=2, places=2),
        ["a.exe"],
        "unreadable",
        "",
    ),
    "encrypted in the directory only": (
        changed(SMALL, FLAGS, 1, places=1),
        ["a.exe"],
        "encrypted unreadable",
        "",
    ),
    "a method that differs": (changed(SMALL, METHOD, 0, places=1), ["a.exe"], "unreadable", ""),
    "one in a doc": (OLE + bytes(600) + SMALL + bytes(70_000), [], "", ""),
    "two in a doc": (OLE + bytes(600) + SMALL + OTHER, ["b.txt"], "", ""),
    "a signing block": (signed(), ["a.exe"], "", ""),
    "42 kB": (overlapping, ["a"] * 1000, "unreadable", None),
    "a bomb": (lambda: nested(2, bytes(OCTETS_MAX)), ["1.zip", "a.exe"], "unreadable", "inflated"),
    "long names": (
        zipped(*(("x" * 60_000 + str(n), b"") for n in range(99))),
        None,
        "unreadable",
        "octets",
    ),
    "rar": (b"Rar!\x1a\x07\x01\x00", [], "unreadable", ""),
    "tar": (TAR, [], "unreadable", ""),
    "encrypted office": (OLE.ljust(640, b"\0") + PACKAGE + b"\0\0", [], "encrypted", ""),
    "a word in a doc": (OLE.ljust(641, b"\0") + PACKAGE + b"\0\0", [], "", ""),
    "a text": (b"It ends like one: PK\5\6", [], "", ""),
}


def contents_of(*attachments, encoding="base64", between=lambda: None):
    parsed = ParsedContent.of(mixed(*(part(one, encoding=encoding) for one in attachments)))
    return archive_contents(parsed, message_parts(parsed), MessageArchives(between))


@each_row("case", CONTENTS)
def test_what_is_in_an_attachment(case):
    octets, names, state, bound = CONTENTS[case]
    [found] = contents_of(octets() if callable(octets) else octets)
    assert (found.is_encrypted, found.is_unreadable) == (
        "encrypted" in state,
        "unreadable" in state,
    )
    if names is not None:
        assert [each.names[0] for each in found.entries] == names
    if bound is not None:  # this version of zipfile may call it damaged
        assert bound in found.bound
        assert bool(found.bound) == bool(bound)


def test_names_are_those_that_any_program_shows():
    flagged = zipped(("Установка.EXE", b""))
    raw = zipped(("ue.exe", b"")).replace(b"ue.exe", "ü.exe".encode())  # as on macOS, no flag
    hidden = zipped(("a.exe?.txt", b"")).replace(b"?", b"\0")
    info = zipfile.ZipInfo("a.txt")
    info.extra = struct.pack("<HHBI", 0x7075, 5 + 5, 1, 0) + b"b.exe"
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr(info, b"")
    found = contents_of(flagged, raw, hidden, other.getvalue())
    names = [each.entries[0].names for each in found]
    assert names[0] == ("установка.exe",)
    assert "ü.exe" in names[1]
    assert names[2] == ("a.exe", "a.exe.txt")
    assert set(names[3]) == {"a.txt", "b.exe"}


def test_bounds_are_those_of_a_message():
    halves = [HALF + bytes(number) for number in range(3)]
    assert [bool(one.bound) for one in contents_of(*halves)] == [False, False, True]
    large = [zipped((name, bytes(OCTETS_MAX // 2))) for name in "abc"]
    assert [bool(one.bound) for one in contents_of(*large[:2])] == [False, False]
    assert contents_of(*large)[2].bound
    assert not any(one.bound for one in contents_of(*large[:1] * 5))  # the same one, read once


@each_row(
    "value, attachments, expected",
    [
        (EXE, [SMALL], True),
        ({"inside": True, "name": "*.EXE", "type": "executable"}, [SMALL], False),
        ({"inside": True, "type": "executable"}, [zipped(("a.txt", PE), ("b", b""))], True),
        ({"inside": True, "name": "b", "type": PE_TYPE}, [zipped(("a", PE), ("b", b""))], False),
        ({"name": "*.exe"}, [SMALL], False),
        ({"encrypted": True}, [SMALL], False),
        ({"encrypted": True}, [changed(SMALL, FLAGS, 1)], True),
        ({**EXE, "encrypted": True}, [changed(SMALL, FLAGS, 1)], True),
        ({**EXE, "encrypted": True}, [SMALL, zipped(("a", b""))], False),
        ({**EXE, "encrypted": True}, [SMALL, changed(zipped(("a", b"")), FLAGS, 1)], False),
        ({"unreadable": True, "type": "archive"}, [TAR], True),
        ({"unreadable": True, "type": "application/zip"}, [TAR, SMALL], False),
        ({"unreadable": True, "type": "application/zip"}, [MANY], True),
        ({"inside": True, "name": "a.exe"}, [zipped(("a.exe", b""), ("b.zip", MANY))], True),
        # the content decides about the type of what is unreadable
        ({"unreadable": True, "type": "application/zip"}, [b"Rar!\x1a\x07\x01\x00"], False),
        ({"unreadable": True, "type": "application/zip"}, [b"x" + MANY], True),
        ({"unreadable": True, "type": "application/zip"}, [b"Rar!\x1a\x07\x01" + MANY], True),
        ({"unreadable": True, "type": "application/zip"}, [TAR.ljust(512) + SMALL], False),
        (EXE, [MANY], UndecidedError),
        ({"encrypted": True}, [MANY], UndecidedError),
        ({"encrypted": True, "type": "executable"}, [MANY], False),
        (EXE, [TAR, SMALL[:-30]], False),
    ],
)
def test_all_keys_of_a_condition_hold_for_one_attachment(value, attachments, expected):
    condition = AttachmentCondition.parse(value, {})
    view = view_of(mixed(*map(part, attachments)))
    assert condition.needs_thread(view) is not (value == {"name": "*.exe"})
    if isinstance(expected, bool):
        assert condition.matches(view) is expected
        assert condition.value_in(view)
    else:
        for _ in range(2):
            with pytest.raises(expected):
                condition.matches(view)
        assert "unreadable" in condition.value_in(view)


@pytest.mark.parametrize(
    ("mode", "on_error", "action"),
    [("enforce", "ignore", VerdictAction.DELIVER), ("audit", "defer", VerdictAction.DELIVER)],
)
def test_a_rule_that_cannot_know_ends_as_it_says(evaluate, mode, on_error, action):
    inside = rule(
        "{ subject_prefix = 'no' }",
        name="in",
        mode=f"'{mode}'",
        on_error=f"'{on_error}'",
        when="{ attachment = { inside = true, name = '*.exe' } }",
    )
    content = mixed(part(MANY))
    verdict = evaluate(inside, content=content)
    assert verdict.recipients[0].action is action
    assert "number of entries" in verdict.hits[0].error
    first = rule("{ hold = 'look' }", when="{ attachment = { unreadable = true } }", stop="true")
    defers = inside.replace(f"'{mode}'", "'enforce'").replace(f"'{on_error}'", "'defer'")
    with pytest.raises(UndecidedError):
        evaluate(defers, content=content)
    assert evaluate(first, defers, content=content).recipients[0].hold


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_a_process_that_takes_too_long_is_killed(monkeypatch):
    contents_of(SMALL)
    [child] = reader._idle
    os.kill(child.process.pid, 19)  # SIGSTOP: it does not answer
    monkeypatch.setattr(archives, "TIME_LIMIT_S", 0.2)
    found = contents_of(SMALL, SMALL)
    assert [one.bound for one in found] == ["0.2 seconds, or the memory"] * 2
    assert state_of(child.process.pid) is None
    monkeypatch.undo()
    assert contents_of(SMALL)[0].entries


def test_a_caller_that_gives_up_does_not_wait_for_the_answer_and_others_do_not_wait_for_it():
    reader.close()
    contents_of(SMALL)
    os.kill(reader._idle[0].process.pid, 19)  # SIGSTOP
    calls, waits, stopped = itertools.count(), threading.Event(), threading.Event()

    def between():
        if next(calls) > 7:  # of these, nearly all while it waits
            waits.set()
        if stopped.is_set():
            raise EvaluationStoppedError

    def ask():
        with pytest.raises(EvaluationStoppedError):
            contents_of(SMALL, between=between)

    thread = threading.Thread(target=ask)
    thread.start()
    assert waits.wait(5)
    assert contents_of(SMALL)[0].entries
    stopped.set()
    thread.join()
    assert contents_of(SMALL)[0].entries
    assert len(reader._idle) == 1


def test_no_noise_ends_the_examination():
    chance = random.Random(50)
    for _ in range(300):
        octets = bytearray(chance.choice([SMALL, BOMB, nested(2), MANY[-3000:]]))
        for _ in range(chance.randint(1, 20)):
            octets[chance.randrange(len(octets))] = chance.randrange(256)
        found = examine(io.BytesIO(bytes(octets)), ArchiveRequest(100, 1 << 20))
        assert len(found.entries) <= 100


def test_a_process_that_is_killed_while_it_reads_is_started_again_once(monkeypatch):
    def between():  # called while the answer is waited for
        for one in started[:limit]:
            one.process.kill()

    started, limit = [], 1
    real = reader._started

    def start(limits):
        started.append(real(limits))
        if len(started) <= limit:  # it does not answer before it is killed
            os.kill(started[-1].process.pid, 19)
        return started[-1]

    monkeypatch.setattr(reader, "_started", start)
    reader.close()
    assert contents_of(SMALL, between=between)[0].entries
    reader.close()
    limit = 9
    started.clear()
    [found] = contents_of(SMALL, between=between)
    assert (found.is_unreadable, found.entries) == (True, ())
    assert len(started) == 2
    assert all(state_of(one.process.pid) is None for one in started)
