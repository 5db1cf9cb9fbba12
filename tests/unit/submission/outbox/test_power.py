"""What a loss of power may leave where names do not imply content: files made short by hand."""

import os
from contextlib import aclosing
from dataclasses import replace

import pytest

from relay.formats.convert import ConversionError, convert
from relay.formats.draft import private_block_length
from relay.store.mailbox.pending_submission import SendOptions
from tests.support.stores import ready_submissions

ALICE = "alice@example.test"
SAVE = SendOptions()


def nothing(_: bytes) -> int:
    return 0


def half_of_the_block(content: bytes) -> int:
    return private_block_length(content) // 2


def half_of_the_body(content: bytes) -> int:
    return len(content) - 500


SHORT = pytest.mark.parametrize("length", [nothing, half_of_the_block, half_of_the_body])


@pytest.fixture
async def submitted(store, draft):
    """A submission on disk, whose file is made short under all of its names."""
    return await store.submissions.submit_new(ALICE, draft(body="0123456789\r\n" * 100), SAVE)


@pytest.fixture
def shortened(submitted, length):
    os.truncate(submitted.path, length(submitted.path.read_bytes()))
    return submitted


@SHORT
async def test_in_preparing_it_goes_at_the_next_start(place, shortened, length):
    [file] = place.files(".Drafts")
    shortened.path.rename(place.root / ".submissions/preparing" / shortened.submission_id)
    if length is not half_of_the_body:
        file.unlink()  # its name came last, and cannot be found by what is in the file
    assert await place.store().submissions.remove_unfinished() == 1
    assert (place.files(".Drafts"), place.submissions(), place.left_over()) == ([], [], [])


@pytest.mark.parametrize("length", [nothing, half_of_the_block])
async def test_in_ready_pickup_gets_it_without_its_record(place, store, draft, shortened):
    whole = await store.submissions.submit_new(ALICE, draft(), SAVE)
    async with aclosing(ready_submissions(place.store())) as submissions:
        found = [await anext(submissions) for _ in range(2)]
    assert {one.submission_id: one.base_name for one in found} == {
        shortened.submission_id: "",
        whole.submission_id: whole.base_name,
    }


@pytest.mark.parametrize("length", [half_of_the_body])
async def test_half_a_body_is_reported_and_never_sent(store, shortened):
    content = await store.ready.content(replace(shortened, content=b""))  # of a later process
    with pytest.raises(ConversionError):
        convert(content, now_us=0, hostname="h")


@SHORT
async def test_in_drafts_it_is_shown_and_can_be_deleted(place, store, shortened):
    shortened.path.unlink()
    again = place.store()
    shown = await again.messages.get(ALICE, shortened.draft_id)
    assert shown.is_draft
    await again.messages.delete(ALICE, shown.id)
    assert place.files(".Drafts") == []
