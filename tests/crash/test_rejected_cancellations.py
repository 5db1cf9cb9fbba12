"""What cancels a scheduled send does all of it or nothing, whichever call of the disk fails, wherever it dies.

DELETE, move, permanentDelete and PATCH of its draft, and an operator's cancellation. An answer says
what happens: after a success nothing is sent, after a refusal the message is sent at its time. After a
kill, and when the outcome is said to be unknown, it is one of both. See docs/design.md 1 (a scheduled send).
"""

import errno
import itertools
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.store.mailbox import maildir
from relay.store.mailbox.errors import OutcomeUnknownError, StoreUnavailableError
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.stored_message import MessageChange
from relay.store.spool.queue_commands import Operation
from relay.submission.outbox.store import FileStore
from tests.support.forgetful import KilledError
from tests.support.long_tests import sampled
from tests.support.power_loss import (
    ALICE,
    HOUR_US,
    Found,
    PowerLossTrial,
    letter,
    nothing,
    start_again,
    trial_on,
    until,
)

pytestmark = pytest.mark.crash

SENT = Found(Counter(["asked"]), Counter([("sentitems", "asked")]))


async def by_delete(store: FileStore, waiting: PendingSubmission) -> None:
    await store.messages.delete(ALICE, waiting.draft_id)


async def by_permanent_delete(store: FileStore, waiting: PendingSubmission) -> None:
    await store.messages.delete(ALICE, waiting.draft_id, permanently=True)


async def by_move(store: FileStore, waiting: PendingSubmission) -> None:
    await store.messages.move(ALICE, waiting.draft_id, "archive")


async def by_change(store: FileStore, waiting: PendingSubmission) -> None:
    change = MessageChange(properties=letter("changed"))
    await store.messages.update(ALICE, waiting.draft_id, change)


async def by_operator(store: FileStore, waiting: PendingSubmission) -> None:
    assert await store.ready.change_waiting(waiting.submission_id, Operation.CANCEL, who="operator")


Way = Callable[[FileStore, PendingSubmission], Awaitable[None]]
# Each way, and what is shown after it.
WAYS: dict[Way, tuple[str, str] | None] = {
    by_delete: ("deleteditems", "asked"),
    by_permanent_delete: None,
    by_move: ("archive", "asked"),
    by_change: ("drafts", "changed"),
    by_operator: ("drafts", "asked"),
}
CALLS = ("rename", "unlink", "link")
OPEN = ("killed", "unknown")


def cancelled(way: Way) -> Found:
    shown = WAYS[way]
    return Found(Counter(), Counter([shown] if shown else []))


async def schedule(trial: PowerLossTrial) -> PendingSubmission:
    await trial.store.folders.every(ALICE)
    due_us = trial.clock.time_us() + HOUR_US
    waiting = await trial.store.submissions.submit_new(
        ALICE, letter("asked", extended=until(due_us)), SendOptions(scheduled_us=due_us)
    )
    trial.disk.settle()
    return waiting


async def answer(cancellation: Awaitable[None]) -> str:
    try:
        await cancellation
    except StoreUnavailableError:
        return "refused"
    except OutcomeUnknownError:
        return "unknown"
    except KilledError:
        return "killed"
    return "accepted"


def fails(number: int, fault: str) -> Callable[[], bool]:
    """Whether a call fails: the one of that number, or that and all from there on."""
    calls = itertools.count()

    def does() -> bool:
        this = next(calls)
        return this == number or (fault == "for good" and this > number)

    return does


DIRECTORIES = ("cur", "new", "tmp", "preparing", "ready", "deferred")


def is_a_message(path: Path) -> bool:
    return path.parent.name in DIRECTORIES


@contextmanager
def failing_calls(
    call: str, root: Path, does_fail: Callable[[], bool], concerns: Callable[[Path], bool]
) -> Iterator[None]:
    """Let calls on some paths below the root fail."""
    real = getattr(os, call)

    def called(path: os.PathLike[str], *more: object, **named: object) -> object:
        of = Path(path)
        if of.is_relative_to(root) and concerns(of) and does_fail():
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, called)
        yield


@pytest.fixture
def no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maildir, "keeps_order", lambda _: False)


@pytest.mark.parametrize("fault", ["once", "for good", "it dies"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("no_order")
async def test_whichever_sync_fails_or_is_the_last_the_answer_says_what_happens(
    tmp_path: Path, way: Way, fault: str
) -> None:
    answers = []
    bad = "is never reached" if fault == "it dies" else "fails"
    while answers[-1:] != ["accepted"]:
        with trial_on(tmp_path / str(len(answers))) as trial:
            waiting = await schedule(trial)
            does_fail = fails(len(answers), fault)
            trial.disk.fate = lambda _, does_fail=does_fail: bad if does_fail() else "works"
            answers.append(said := await answer(way(trial.store, waiting)))
            expected = cancelled(way) if said == "accepted" else SENT
            if said == "accepted" or fault == "once":
                await trial.check(lambda found, sent=expected.sent: found.sent == sent)
            if said != "killed":
                trial.disk.fate = lambda _: "works"
            found = await start_again(trial.root, trial.clock, nothing)
            assert found == expected or (said in OPEN and found == cancelled(way))
    assert ("killed" if fault == "it dies" else "refused") in answers


@pytest.mark.parametrize(
    ("call", "fault", "way"),
    sampled(itertools.product(CALLS, ["once", "for good"], WAYS), one_of=2),
)
async def test_whichever_call_fails_the_answer_says_what_happens(
    tmp_path: Path, way: Way, fault: str, call: str
) -> None:
    for number in itertools.count():
        with trial_on(tmp_path / str(number)) as trial:
            waiting = await schedule(trial)
            calls = []
            does_fail = fails(number, fault)

            def counted(does_fail=does_fail, calls=calls) -> bool:
                calls.append(failed := does_fail())
                return failed

            with failing_calls(call, trial.root, counted, is_a_message):
                said = await answer(way(trial.store, waiting))
            expected = cancelled(way) if said == "accepted" else SENT
            assert await start_again(trial.root, trial.clock, nothing) == expected
            if not any(calls):
                break


# -- a folder: no scheduled draft is in one that can be deleted, but its messages are


FOLDER_CHANGES = {
    "deleted": lambda folders, one: folders.delete(ALICE, one),
    "deleted permanently": lambda folders, one: folders.delete(ALICE, one, permanently=True),
    "renamed": lambda folders, one: folders.rename(ALICE, one, "other"),
    "moved": lambda folders, one: folders.move(ALICE, one, parent_id="archive"),
}


@pytest.mark.parametrize("fault", ["sync", "rename"])
@pytest.mark.parametrize("change", FOLDER_CHANGES)
async def test_a_folder_whose_change_fails_is_unchanged(
    tmp_path: Path, change: str, fault: str
) -> None:
    """Whichever call fails: the folder, its subfolders and their messages stay where they are."""
    answers = []
    while answers[-1:] != ["accepted"]:
        with trial_on(tmp_path / str(len(answers))) as trial:
            waiting, store = await schedule(trial), trial.store
            outer = await store.folders.create(ALICE, "outer")
            inner = await store.folders.create(ALICE, "inner", parent_id=outer.id)
            made = await store.messages.create(ALICE, letter("kept"), folder_id=inner.id)
            before = await store.folders.every(ALICE)
            does_fail = fails(len(answers), "once")
            if fault == "sync":
                trial.disk.fate = lambda _, does_fail=does_fail: "fails" if does_fail() else "works"
                answers.append(await answer(FOLDER_CHANGES[change](store.folders, outer.id)))
            else:
                with failing_calls("rename", trial.root, does_fail, Path.is_dir):
                    answers.append(await answer(FOLDER_CHANGES[change](store.folders, outer.id)))
            trial.disk.fate = lambda _: "works"
            assert waiting.path.exists()
            if answers[-1] == "refused":
                assert await store.folders.every(ALICE) == before
                assert (await store.messages.get(ALICE, made.id)).folder.id == inner.id
                await trial.check(lambda found, of=inner.id: found.shown[of, "kept"] == 1)
    assert "refused" in answers
