"""Contents: received into the spool, read again, and removed when no message has them."""

import os
from zlib import crc32

import pytest

from relay.base.files import write_all
from relay.base.message.content import LARGE_BYTES, LargeContent, read_all
from relay.store.spool.types import ClaimResult, SpoolError
from tests.support.operator import OK

HEADER = b"Subject: large\r\n"
BODY = b"\r\n" + b"0123456789abcde\r\n" * (LARGE_BYTES // 17) + b"\xff\r\n"


async def received(spool):
    """Return a file with BODY, and the content, as an SMTP session makes it."""
    body = spool.incoming_body()
    await body.write([BODY[:7], BODY[7:20]])
    await body.write([BODY[20:]])
    return body, LargeContent(HEADER, (body.octets(),), eight_bit=True)


async def test_a_received_body_belongs_to_the_message_that_is_accepted_with_it(
    spool, restart, make
) -> None:
    body, content = await received(spool)
    (claim,) = (await spool.accept(make(content=content))).claims
    body.discard()
    again = await restart()
    found = await again.read_content(claim.content_id)
    kept = await again.read_message(claim.message.id)
    assert isinstance(found, LargeContent)
    assert (found.header, found.eight_bit, read_all(found)) == (HEADER, True, HEADER + BODY)
    assert (claim.content, claim.content_size) == (None, len(HEADER + BODY))
    assert kept.content is not None
    assert read_all(kept.content) == HEADER + BODY
    assert list(kept.recipients) == [(1, "x@a.test", "deferred")]


async def test_a_body_that_another_process_writes_is_as_a_received_one(spool, make) -> None:
    body = spool.incoming_body()
    file = os.dup(await body.lend())
    write_all(file, BODY)
    with pytest.raises(SpoolError, match="expected 5"):
        await body.take_back(5, crc32(BODY))
    await body.take_back(len(BODY), crc32(BODY))
    os.pwrite(file, b"changed", 0)  # that process has not closed it
    os.close(file)
    content = LargeContent(HEADER, (body.octets(),), eight_bit=True)
    assert read_all(content) == HEADER + BODY  # what the rules see
    (claim,) = (await spool.accept(make(content=content))).claims
    body.discard()
    found = await spool.read_content(claim.content_id)
    assert read_all(found) == HEADER + BODY


async def test_an_opened_content_stays_readable_when_it_is_removed(spool, make) -> None:
    _, content = await received(spool)
    (claim,) = (await spool.accept(make(content=content))).claims
    kept = await spool.read_message(claim.message.id)
    await spool.record(ClaimResult(claim, 5, {1: OK}))
    await spool.maintenance.sweep()  # what the result does not need may be removed later
    assert kept.content is not None
    assert read_all(kept.content) == HEADER + BODY
    later = await spool.read_message(claim.message.id)
    assert (later.content, list(later.recipients)) == (None, [(1, "x@a.test", "relayed")])
    with pytest.raises(SpoolError):
        await spool.read_content(claim.content_id)


async def test_a_sweep_removes_what_a_dead_owner_left_and_nothing_that_is_needed(
    spool, restart, make, clock
) -> None:
    (claim,) = (await spool.accept(make(content=(await received(spool))[1]))).claims
    await received(spool)
    clock.advance(1)
    alive = await restart()
    _, content = await received(alive)
    removed = await alive.maintenance.sweep()
    assert removed >= 1
    assert await alive.maintenance.sweep() == 0
    (new,) = (await alive.accept(make(content=content))).claims
    for content_id in (claim.content_id, new.content_id):
        assert read_all(await alive.read_content(content_id)) == HEADER + BODY
