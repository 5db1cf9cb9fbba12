"""A content whose bytes changed on disk, at the same size, is not delivered."""

import threading
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from msgspec import structs

from relay.base.message.content import LargeContent, read_all
from relay.base.message.outcome import Evidence, Failed
from relay.delivery.content_cache import ContentCache
from relay.store.spool.sqlite import content_files
from relay.store.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import ClaimResult, DueQuery, SpoolError

HEADER = b"Subject: large\r\n"
BODY = b"\r\n" + b"0123456789abcdef\r\n" * 10
NO = Failed(Evidence("5.1.1", "550 5.1.1 no", "mx.a.test", remote=True))


async def arrived(spool: SqliteSpool) -> LargeContent:
    """A content as an SMTP session writes it, its body in two writes."""
    incoming_body = spool.incoming_body()
    await incoming_body.write([BODY[:7], BODY[7:20]])
    await incoming_body.write([BODY[20:]])
    return LargeContent(HEADER, (incoming_body.octets(),), eight_bit=False)


async def inline(_: SqliteSpool) -> bytes:
    return HEADER + BODY


async def in_a_file(_: SqliteSpool) -> bytes:
    return HEADER + b"\r\n" + b"x" * INLINE_BYTES_MAX


async def in_pieces(spool: SqliteSpool) -> LargeContent:
    """A content whose body is copied because it is not one whole file of the spool."""
    whole = await arrived(spool)
    (body,) = whole.body
    pieces = (body.part(0, 9), body.part(9, body.size))
    return replace(whole, body=pieces)


def flip(path: Path, files: Path, *, of: str = "") -> None:
    """Flip one bit in the middle of the stored bytes, or of the column `of`; twice restores it."""
    stored = [one for one in files.iterdir() if not one.name.startswith("arriving-")]
    if stored and not of:
        octets = bytearray(stored[0].read_bytes())
        octets[len(octets) // 2] ^= 0x04
        stored[0].write_bytes(octets)
        return
    column = of or "data"
    connection = apsw.Connection(str(path))
    ((found,),) = connection.execute(f"SELECT {column} FROM content")
    octets = bytearray(found)
    octets[len(octets) // 2] ^= 0x04
    connection.execute(f"UPDATE content SET {column} = ?", (bytes(octets),))
    connection.close()


def overwrite(files: Path) -> None:
    for stored in files.glob("*-0"):
        stored.write_bytes(b"z" * len(BODY))


@pytest.mark.parametrize(
    ("store", "part"),
    [(inline, ""), (in_a_file, ""), (arrived, ""), (arrived, "header"), (in_pieces, "")],
    ids=["inline", "in a file", "arrived", "header", "in pieces"],
)
async def test_changed_bytes_are_detected_until_they_are_restored(
    spool, make, path: Path, files: Path, store, part: str
) -> None:
    content = await store(spool)
    (claim,) = (await spool.accept(make(content=content))).claims
    expected = read_all(content)
    assert read_all(await spool.read_content(claim.content_id)) == expected
    flip(path, files, of=part)
    with pytest.raises(SpoolError, match=r"has changed: CRC-32 \w{8}, expected \w{8}"):
        await spool.read_content(claim.content_id)
    flip(path, files, of=part)
    assert read_all(await spool.read_content(claim.content_id)) == expected


async def test_the_checksum_is_verified_after_a_restart(path, files, make, running, clock):
    async with running(path) as first:
        await first.accept(make(content=await arrived(first)), claim=False)
        await first.accept(make(content=await arrived(first)))
    overwrite(files)
    async with running(path) as spool:
        seen = await spool.claim_due(clock.queue_us() + 1000, 10, DueQuery())
        kept = ContentCache(spool, budget_bytes=1 << 20)
        assert len(seen.claims) == 2
        for claim in seen.claims:
            with pytest.raises(SpoolError, match="has changed"):
                await kept.of(claim)


async def test_versions_and_dead_letters_of_one_file_have_their_own_checksums(spool, make) -> None:
    content = await arrived(spool)
    other = replace(content, header=b"X-Tag: yes\r\n" + HEADER)
    entries = make({"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"]}).entries
    message = structs.replace(
        make(),
        contents=(content, other),
        entries=(entries[0], structs.replace(entries[1], content=1)),
    )
    one, two = (await spool.accept(message)).claims
    read = await spool.read_content(one.content_id)
    letter = make({"local": ["postmaster"]}, content=replace(read, header=b"To: p\r\n" + HEADER))
    held, (dead,) = await spool.record(ClaimResult(one, 5, {1: NO}, reports=(letter,)))
    assert held
    assert read_all(await spool.read_content(two.content_id)) == other.header + BODY
    assert read_all(await spool.read_content(dead.content_id)).startswith(b"To: p\r\n")


async def test_large_bodies_are_verified_outside_the_queue_reader(spool, make, monkeypatch) -> None:
    """A long read does not block the queue reader."""
    (claim,) = (await spool.accept(make(content=await arrived(spool)))).claims
    threads: list[str] = []

    def verify(*_: object, **_more: object) -> None:
        threads.append(threading.current_thread().name.rpartition("_")[0])

    monkeypatch.setattr(content_files, "verify_checksum", verify)
    await spool.read_content(claim.content_id)
    assert threads == ["spool-check"]
