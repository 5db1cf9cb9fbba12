"""A submission that was rejected is never sent, whichever sync of the disk fails; an accepted one is."""

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from relay.store.mailbox import maildir
from relay.store.mailbox.errors import OutcomeUnknownError, StoreUnavailableError
from relay.store.mailbox.pending_submission import SendOptions
from relay.submission.outbox.store import FileStore
from tests.support.long_tests import sampled
from tests.support.manual_clock import ManualClock
from tests.support.power_loss import ALICE, HOUR_US, letter, options_with_key, trial_on, until

pytestmark = pytest.mark.crash


async def by_send_mail(store: FileStore, _: str, due_us: int) -> None:
    extended = until(due_us) if due_us else ()
    await store.submissions.submit_new(
        ALICE, letter("asked", extended=extended), SendOptions(scheduled_us=due_us)
    )


async def by_send(store: FileStore, draft_id: str, due_us: int) -> None:
    await store.submissions.submit_draft(ALICE, draft_id, SendOptions(scheduled_us=due_us))


async def by_send_rewritten(store: FileStore, draft_id: str, due_us: int) -> None:
    """The draft is written again: its file does not say that it is not kept."""
    await store.submissions.submit_draft(ALICE, draft_id, SendOptions(False, scheduled_us=due_us))


async def by_send_mail_with_key(store: FileStore, _: str, due_us: int) -> None:
    extended = until(due_us) if due_us else ()
    options = options_with_key(scheduled_us=due_us)
    await answer_matches_record(
        store, store.submissions.submit_new(ALICE, letter("asked", extended=extended), options)
    )


async def by_send_with_key(store: FileStore, draft_id: str, due_us: int) -> None:
    options = options_with_key(scheduled_us=due_us)
    await answer_matches_record(store, store.submissions.submit_draft(ALICE, draft_id, options))


async def answer_matches_record(store: FileStore, submission: Awaitable[object]) -> None:
    try:
        await submission
    except StoreUnavailableError:
        assert await store.submissions.find_keyed(ALICE, "slot") is None
        raise
    if not store._directory.is_unfinished:
        assert await store.submissions.find_keyed(ALICE, "slot") is not None


SUBMIT = [by_send_mail, by_send, by_send_rewritten, by_send_mail_with_key, by_send_with_key]
DUE_US = {"now": 0, "deferred": ManualClock().now_us + HOUR_US}
IN_ORDER = {"synced before": False, "written back": True}


@pytest.mark.parametrize(
    ("fault", "submit", "due", "order"),
    sampled(itertools.product(["once", "for good"], SUBMIT, DUE_US, IN_ORDER), one_of=7),
)
async def test_no_rejected_submission_is_sent(
    tmp_path: Path, monkeypatch, *, fault: str, submit, due: str, order: str
) -> None:
    """Whichever sync fails, the client gets an error only if the submission is removed durably."""
    monkeypatch.setattr(maildir, "keeps_order", lambda _: IN_ORDER[order])
    answers = []
    while answers[-1:] != ["accepted"]:
        with trial_on(tmp_path / str(len(answers))) as trial:
            monkeypatch.setattr(maildir, "_write_back", trial.disk.write_back)
            trial.disk.in_order = IN_ORDER[order]
            draft = await trial.store.messages.create(ALICE, letter("asked"))
            await trial.store.submissions.submit_new(ALICE, letter("before"), SendOptions())
            trial.disk.fate = failing(len(answers), fault)
            answers.append(await answer(submit(trial.store, draft.id, DUE_US[due])))
            if answers[-1] == "refused":
                await trial.check(lambda found: "asked" not in found.sent)
            elif answers[-1] == "accepted":
                await trial.check(lambda found: found.sent["asked"] == 1)
    if fault == "once" and submit not in (by_send_mail_with_key, by_send_with_key):
        assert set(answers) == {"refused", "accepted"}
    else:
        assert "unknown" in answers


def failing(number: int, fault: str) -> Callable[[str], str]:
    """Let the sync of that number fail, or that and all others from there on."""
    syncs = itertools.count()

    def fate(_: str) -> str:
        this = next(syncs)
        return "fails" if this == number or (fault == "for good" and this > number) else "works"

    return fate


async def answer(submission: Awaitable[None]) -> str:
    try:
        await submission
    except OutcomeUnknownError:
        return "unknown"
    except StoreUnavailableError:
        return "refused"
    return "accepted"
