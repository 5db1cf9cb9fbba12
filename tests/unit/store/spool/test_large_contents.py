"""Contents whose body is received into a file: linked, shared, read and removed."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from relay.base.files import FileOctets
from relay.base.message.content import LargeContent, MemoryOctets, read_all
from relay.store.spool.sqlite import content_files
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import ClaimResult, SpoolError, SpoolUnavailableError
from tests.support.operator import OK

HEADER = b"Subject: large\r\n"
BODY = b"\r\n" + b"0123456789abcdef\r\n" * 10


def names(files: Path) -> list[str]:
    return sorted(one.name for one in files.iterdir())


async def arrived(spool: SqliteSpool, body: bytes = BODY) -> LargeContent:
    """A content as an SMTP session writes it, its body in two writes."""
    incoming_body = spool.incoming_body()
    await incoming_body.write([body[:7], body[7:20]])
    await incoming_body.write([body[20:]])
    return LargeContent(HEADER, (incoming_body.octets(),), eight_bit=not body.isascii())


async def gone(path: Path) -> None:
    async with asyncio.timeout(120):
        while path.name in names(path.parent):
            await asyncio.sleep(0)


async def test_a_file_is_removed_with_the_last_entry_of_any_version(spool, make, files: Path):
    content = await arrived(spool)
    other = replace(content, header=b"X-Tag: yes\r\n" + HEADER)
    hops = {"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"], "mx:c.test": ["z@c.test"]}
    entries = make(hops).entries
    entries = (*entries[:2], structs.replace(entries[2], content=1))
    message = make(contents=(content, other), entries=entries)
    claims = (await spool.accept(message)).claims
    assert len({claim.content_id for claim in claims}) == 2
    assert f"{message.facts.id}-0" in names(files)
    assert f"{message.facts.id}-1" not in names(files)
    assert read_all(await spool.read_content(claims[2].content_id)).startswith(b"X-Tag: yes\r\n")
    for number in (0, 2):
        await spool.record(ClaimResult(claims[number], 5, {claims[number].recipients[0].id: OK}))
    assert read_all(await spool.read_content(claims[1].content_id)) == HEADER + BODY
    await spool.record(ClaimResult(claims[1], 5, {2: OK}))
    await gone(files / f"{message.facts.id}-0")


async def test_a_repeated_or_failed_acceptance_leaves_no_name(spool, make, files: Path) -> None:
    content = await arrived(spool)
    (arriving,) = names(files)
    await spool.accept(make(), submission_key="once")
    assert (await spool.accept(make(content=content), submission_key="once")).repeated
    assert names(files) == [arriving]
    with pytest.raises(UnicodeEncodeError):
        await spool.accept(make(content=content, subject="\ud800"))
    assert names(files) == [arriving]
    with pytest.raises(SpoolUnavailableError):
        await spool.accept(make(content=content), reports=[make(content=content, id="n" * 300)])
    assert names(files) == [arriving]


def pieces_in_memory(_: FileOctets) -> tuple[MemoryOctets, ...]:
    return (MemoryOctets(BODY[:9]), MemoryOctets(BODY[9:]))


def a_part_of_the_file(whole: FileOctets) -> tuple[FileOctets, ...]:
    return (whole.part(2, 50),)


def a_file_elsewhere(whole: FileOctets) -> tuple[FileOctets, ...]:
    other = whole.path.parent.parent / "elsewhere"
    other.write_bytes(BODY)
    return (FileOctets(other, 0, len(BODY)),)


@pytest.mark.parametrize("other", [pieces_in_memory, a_part_of_the_file, a_file_elsewhere])
async def test_a_body_from_elsewhere_is_copied(spool, make, other: Callable, files: Path) -> None:
    content = await arrived(spool)
    content = replace(content, body=other(content.body[0]))
    (claim,) = (await spool.accept(make(content=content))).claims
    assert (files / f"{claim.message.id}-0").stat().st_nlink == 1
    assert read_all(await spool.read_content(claim.content_id)) == read_all(content)


async def test_a_body_is_copied_where_hard_links_are_impossible(spool, make, files, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    content = await arrived(spool)
    monkeypatch.setattr(content_files.os, "link", refuse)
    (claim,) = (await spool.accept(make(content=content))).claims
    assert (files / f"{claim.message.id}-0").stat().st_nlink == 1
    assert read_all(await spool.read_content(claim.content_id)) == HEADER + BODY


async def test_the_body_is_synced_before_the_transaction_references_it(
    spool, make, files: Path, monkeypatch
) -> None:
    synced: list[str] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        really(descriptor)

    content = await arrived(spool)
    message = make(content=content)
    at_point: list[list[str]] = []
    monkeypatch.setattr(content_files.os, "fsync", fsync)
    monkeypatch.setattr(spool._files._crash, "reached", lambda _: at_point.append(list(synced)))
    await spool.accept(message)
    assert at_point[0] == [f"{message.facts.id}-0", files.name]


async def test_a_discarded_body_stays_removed(spool, files: Path) -> None:
    incoming_body = spool.incoming_body()
    await incoming_body.write([BODY])
    incoming_body.discard()
    await gone(incoming_body.octets().path)
    await incoming_body.write([BODY])  # as the thread of a closed session does
    assert names(files) == []


@pytest.mark.parametrize("octets", [5, None])
async def test_a_missing_or_truncated_body_is_an_error(spool, make, files: Path, octets) -> None:
    (claim,) = (await spool.accept(make(content=await arrived(spool)))).claims
    stored = files / f"{claim.message.id}-0"
    stored.unlink() if octets is None else os.truncate(stored, octets)
    for check in (True, False):
        with pytest.raises(SpoolError, match=r"has 5 bytes, expected 182|No such file"):
            await spool.read_content(claim.content_id, check=check)
