"""Every sync of the mail store is necessary: without it, some power loss loses accepted data.

Tests docs/design.md 1 and 3 on every file system, not only where one fsync covers several directories.
"""

import ast
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from relay.base.crashpoints import CrashPoint
from relay.store.mailbox import maildir
from relay.store.mailbox.errors import OutcomeUnknownError, StoreUnavailableError
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.settings_file import UserSettings
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
    PromiseBrokenError,
    key_is_known,
    letter,
    mime,
    options_with_key,
    trial_on,
    until,
)
from tests.support.stores import store_on

pytestmark = pytest.mark.crash


async def first_submission(trial: PowerLossTrial) -> None:
    await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    await trial.promised(("sentitems", "asked"), sent="asked")


async def drafts(trial: PowerLossTrial) -> None:
    made = await trial.store.messages.create(ALICE, letter("draft"))
    await trial.promised(("drafts", "draft"))
    await trial.store.messages.update(ALICE, made.id, MessageChange(properties=letter("changed")))
    await trial.promised(("drafts", "changed"))


async def moves(trial: PowerLossTrial) -> None:
    made = await trial.store.messages.create(ALICE, letter("draft"))
    store = trial.settled_store()
    await store.messages.move(ALICE, made.id, "archive")
    await trial.promised(("archive", "draft"))
    await store.messages.delete(ALICE, made.id)
    await trial.promised(("deleteditems", "draft"))
    await store.messages.delete(ALICE, made.id)
    await trial.promised()


async def moves_of_tagged_messages(trial: PowerLossTrial) -> None:
    """A letter without a name in Dovecot's file would be another keyword."""
    made = await trial.store.messages.create(ALICE, letter("draft"))
    home = trial.root / "example.test/alice"
    (home / ".Drafts/dovecot-keywords").write_bytes(b"3 urgent\n")
    [file] = (home / ".Drafts/cur").iterdir()
    file.rename(file.with_name(f"{file.name}d"))
    await trial.settled_store().messages.move(ALICE, made.id, "archive")

    async def named(after: FileStore) -> None:
        archive = after._folders.directory(ALICE) / ".Archive"
        tagged = [one for one in archive.glob("cur/*") if one.name.endswith("a")]
        names = archive / "dovecot-keywords"
        if tagged and not (names.exists() and names.read_bytes() == b"0 urgent\n"):
            raise PromiseBrokenError

    await trial.promised(("archive", "draft"), at_start=named)


async def repeated_deletes(trial: PowerLossTrial) -> None:
    """The first one is refused: the second one must not take the message for deleted already."""
    made = await trial.store.messages.create(ALICE, letter("draft"))
    for number in (0, 1):
        store = trial.settled_store()
        trial.fails_at("messages.py:_rename", number)
        with pytest.raises(StoreUnavailableError):
            await store.messages.delete(ALICE, made.id)
    await store.messages.delete(ALICE, made.id)
    await trial.promised(("deleteditems", "draft"))


async def copies(trial: PowerLossTrial) -> None:
    made = await trial.store.messages.create(ALICE, letter("draft"))
    await trial.settled_store().messages.copy(ALICE, made.id, "archive")
    await trial.promised(("drafts", "draft"), ("archive", "draft"))


async def copies_of_folders(trial: PowerLossTrial) -> None:
    await trial.store.messages.create(ALICE, letter("kept"))
    (trial.root / "example.test/alice/subscriptions.lock").touch()  # another program changes it
    store = trial.settled_store()
    copy = await store.folders.copy(ALICE, "drafts", parent_id="archive")
    await trial.promised(("drafts", "kept"), (copy.id, "kept"))


async def step_4(trial: PowerLossTrial, lost: str = "") -> None:
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    home = trial.root / "example.test/alice"
    if lost == "folder":
        shutil.rmtree(home / ".Sent")
    elif lost == "draft":
        [file] = (home / ".Drafts/cur").iterdir()
        file.unlink()
    await trial.settled_store().ready.complete(pending, queue_id="q")
    # The submission may come back with the power, and is asked about by its key then.
    await trial.check(
        lambda found: found.shown == Counter([("sentitems", "asked")]) and found.sent.total() < 2
    )


async def step_4_without_a_folder(trial: PowerLossTrial) -> None:
    await step_4(trial, "folder")


async def step_4_without_a_draft(trial: PowerLossTrial) -> None:
    await step_4(trial, "draft")


async def sends(trial: PowerLossTrial) -> None:
    made = await trial.store.messages.create(ALICE, letter("asked"))
    await trial.settled_store().submissions.submit_draft(ALICE, made.id, SendOptions())
    await trial.promised(("sentitems", "asked"), sent="asked")


async def sends_rewritten(trial: PowerLossTrial) -> None:
    made = await trial.store.messages.create(ALICE, letter("asked"))
    await trial.settled_store().submissions.submit_draft(
        ALICE, made.id, SendOptions(sent_folder="archive")
    )
    await trial.promised(("archive", "asked"), sent="asked")


async def keyed_submissions(
    trial: PowerLossTrial, looks_at: CrashPoint = CrashPoint.KEY_RECORDED
) -> None:
    """From the record of the key on the message exists: a repeat is answered and not sent."""
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    trial.looks_at = looks_at
    await store.submissions.submit_new(ALICE, letter("asked"), options_with_key())
    if looks_at is CrashPoint.PREPARING_DIRECTORY_SYNCED:
        await trial.promised()
    else:
        await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)


async def keyed_submissions_that_are_named(trial: PowerLossTrial) -> None:
    """Its name in preparing/ goes when the one in ready/ is durable."""
    await keyed_submissions(trial, CrashPoint.SUBMISSION_READY)


async def keyed_submissions_before_their_record(trial: PowerLossTrial) -> None:
    await keyed_submissions(trial, CrashPoint.PREPARING_DIRECTORY_SYNCED)


async def keyed_submissions_that_a_start_finishes(trial: PowerLossTrial) -> None:
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), options_with_key())
    pending.path.rename(trial.root / ".submissions/preparing" / f"{pending.submission_id}@slot")
    await trial.settled_store().submissions.remove_unfinished()
    await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)


async def keyed_submissions_that_a_kill_left(trial: PowerLossTrial) -> None:
    """The start finds a record that the dead process could not sync."""
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    trial.fails_at("idempotency.py:_write", 1)
    with suppress(OutcomeUnknownError):
        await store.submissions.submit_new(ALICE, letter("asked"), options_with_key())
    with store_on(trial.root, trial.clock) as started:
        await started.submissions.remove_unfinished()
        await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)


async def keyed_submissions_after_a_kill(trial: PowerLossTrial) -> None:
    """The dead process has made the directory of records, and could not sync it."""
    await submit_after_a_kill(trial, at=0)


async def keyed_submissions_in_an_hour_after_a_kill(trial: PowerLossTrial) -> None:
    """The dead process has made the hour's directory, and could not sync it."""
    await submit_after_a_kill(trial, at=1)


async def submit_after_a_kill(trial: PowerLossTrial, *, at: int) -> None:
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    trial.fails_at("idempotency.py:_make_hour", at)
    with suppress(OutcomeUnknownError):
        await store.submissions.submit_new(ALICE, letter("no"), options_with_key())
    with store_on(trial.root, trial.clock) as started:
        await started.submissions.remove_unfinished()
        await started.submissions.submit_new(ALICE, letter("asked"), options_with_key())
        await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)


async def keyed_sends(trial: PowerLossTrial) -> None:
    made = await trial.store.messages.create(ALICE, letter("asked"))
    store = trial.settled_store()
    trial.looks_at = CrashPoint.KEY_RECORDED
    await store.submissions.submit_draft(ALICE, made.id, options_with_key())
    await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)


async def failures_of_keyed_submissions(trial: PowerLossTrial) -> None:
    """Its name in preparing/ must not come back: a start would make it ready again."""
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    pending = await store.submissions.submit_new(ALICE, letter("asked"), options_with_key())
    await store.ready.fail(pending, mime("report"))
    await trial.promised(("drafts", "asked"), ("inbox", "report, unread"))


async def cancellations_of_keyed_submissions(trial: PowerLossTrial) -> None:
    await trial.store.folders.every(ALICE)
    store, due_us = trial.settled_store(), trial.clock.time_us() + HOUR_US
    pending = await store.submissions.submit_new(
        ALICE, letter("asked", extended=until(due_us)), options_with_key(scheduled_us=due_us)
    )
    await store.messages.update(ALICE, pending.draft_id, MessageChange(properties=letter("asked")))
    await trial.promised(("drafts", "asked"))


async def keyed_submissions_that_are_open(trial: PowerLossTrial) -> None:
    """The sync of ready/ fails after the record: it was answered, and is sent."""
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    trial.fails_at("on_disk.py:make_ready", 0)
    await store.submissions.submit_new(ALICE, letter("asked"), options_with_key())
    await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)
    await store.attend_root()
    await trial.promised(("sentitems", "asked"), sent="asked", at_start=key_is_known)


async def failures(trial: PowerLossTrial) -> None:
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    await trial.settled_store().ready.fail(pending, mime("report"))
    await trial.promised(("drafts", "asked"), ("inbox", "report, unread"))


async def damaged_submissions(trial: PowerLossTrial) -> None:
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    pending.path.unlink()
    pending.path.write_bytes(b"")
    store = trial.settled_store()
    (found,) = await store._threads.run(store._directory.list_ready, (), 10)
    await store.ready.fail(found, mime("report"), report_to=ALICE, to_corrupt=True)
    await trial.promised(("drafts", "asked"), ("inbox", "report, unread"), aside=1)


async def schedule_message(trial: PowerLossTrial, **properties: object) -> PendingSubmission:
    """Submit a message that waits for an hour."""
    due_us = trial.clock.time_us() + HOUR_US
    options = SendOptions(scheduled_us=due_us)
    asked = letter("asked", extended=until(due_us), **properties)
    return await trial.store.submissions.submit_new(ALICE, asked, options)


async def scheduled_sends(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    await trial.promised(("sentitems", "asked"), sent="asked")
    store = trial.settled_store()
    await store._threads.run(store._scheduled.make_due_ready, [pending.path.name])
    await trial.promised(("sentitems", "asked"), sent="asked")


async def changes_of_scheduled_sends(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    later = until(trial.clock.time_us() + 2 * HOUR_US)
    changed = MessageChange(properties=letter("changed", extended=later))
    await trial.settled_store().messages.update(ALICE, pending.draft_id, changed)
    await trial.promised(("sentitems", "changed"), sent="changed")


async def cancelled_sends(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    changed = MessageChange(properties=letter("asked"))
    await trial.settled_store().messages.update(ALICE, pending.draft_id, changed)
    await trial.promised(("drafts", "asked"))


async def sends_cancelled_by_an_operator(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    await trial.settled_store().ready.change_waiting(
        pending.submission_id, Operation.CANCEL, who="operator"
    )
    await trial.promised(("drafts", "asked"))


async def holds(trial: PowerLossTrial) -> None:
    """For the account: only a release sends it, and a cancellation ends it."""
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    store = trial.settled_store()
    await store.ready.hold(pending, "account")
    await trial.promised(("drafts", "asked"))
    await trial.promised(("sentitems", "asked"), sent="asked", at_start=release_all)
    await store.ready.change_waiting(pending.submission_id, Operation.CANCEL, who="operator")
    await trial.promised(("drafts", "asked"), at_start=release_all)


async def release_all(store: FileStore) -> None:
    for name in store.restored.directory.scheduled.glob("*"):
        submission_id = name.name.partition("@")[0]
        await store.ready.change_waiting(submission_id, Operation.RELEASE, who="operator")


async def holds_of_scheduled_sends(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    store = trial.settled_store()
    await store.ready.change_waiting(pending.submission_id, Operation.HOLD, who="operator")
    await trial.promised(("drafts", "asked"))
    store = trial.settled_store()
    await store.ready.change_waiting(pending.submission_id, Operation.RELEASE, who="operator")
    await trial.promised(("sentitems", "asked"), sent="asked")


async def releases(trial: PowerLossTrial) -> None:
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    await trial.store.ready.hold(pending, "account")
    store = trial.settled_store()
    await store.ready.change_waiting(pending.submission_id, Operation.RELEASE, who="operator")
    await trial.promised(("sentitems", "asked"), sent="asked")
    await trial.promised(("sentitems", "asked"), sent="asked", at_start=release_all)


async def rejected_changes_of_scheduled_sends(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    changed = MessageChange(
        properties=letter("changed", extended=until(pending.options.scheduled_us))
    )
    store = trial.settled_store()
    trial.fails_at("messages.py:_write", 1)
    with pytest.raises(StoreUnavailableError):
        await store.messages.update(ALICE, pending.draft_id, changed)
    await trial.check(lambda found: found.sent == Counter(["asked"]))


async def rejected_cancellations(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    store, changed = trial.settled_store(), MessageChange(properties=letter("changed"))
    trial.fails_at("messages.py:_write", 1)
    with pytest.raises(StoreUnavailableError):
        await store.messages.update(ALICE, pending.draft_id, changed)
    await trial.check(lambda found: found.sent == Counter(["asked"]))


async def rejected_deletes(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    store = trial.settled_store()
    trial.fails_at("messages.py:_rename", 1)
    with pytest.raises(StoreUnavailableError):
        await store.messages.delete(ALICE, pending.draft_id)
    await trial.check(lambda found: found.sent == Counter(["asked"]))


async def rejected_submissions(trial: PowerLossTrial) -> None:
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    trial.fails_at("submit.py:_submit", 0)
    with pytest.raises(StoreUnavailableError):
        await store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    await trial.check(lambda found: found.sent.total() == 0)


async def repeated_cancellations(trial: PowerLossTrial) -> None:
    """The first one is refused, and says nothing; the second one promises."""
    pending = await schedule_message(trial)
    store, changed = trial.settled_store(), MessageChange(properties=letter("asked"))
    trial.fails_at("scheduled.py", 0)
    with pytest.raises(StoreUnavailableError):
        await store.messages.update(ALICE, pending.draft_id, changed)
    await store.messages.update(ALICE, pending.draft_id, changed)
    await trial.promised(("drafts", "asked"))


async def deliveries(trial: PowerLossTrial) -> None:
    await trial.store.deliver(ALICE, unique="1", content=mime("letter"))
    await trial.promised(("inbox", "letter, unread"))
    page = await trial.store.lists.query(ALICE, MessageQuery())
    store, identity = trial.settled_store(), page.messages[0].id
    await store.messages.update(ALICE, identity, MessageChange(is_read=True))
    await trial.promised(("inbox", "letter"))
    await trial.settled_store().messages.mark(ALICE, [identity], is_read=False)
    await trial.promised(("inbox", "letter, unread"))


async def drafts_after_a_delivery(trial: PowerLossTrial) -> None:
    """A delivery leaves the other folders to their first use, also by a later process."""
    await trial.store.deliver(ALICE, unique="1", content=mime("letter"))
    with store_on(trial.root, trial.clock) as again:
        await again.messages.create(ALICE, letter("draft"))
    await trial.promised(("inbox", "letter, unread"), ("drafts", "draft"))


async def repeated_deliveries(trial: PowerLossTrial, *, is_repeat: bool = False) -> None:
    await trial.store.folders.every(ALICE)
    store = trial.settled_store()
    trial.fails_at("inbox.py:_write", 1, "is never reached")
    with pytest.raises(KilledError):
        await store.deliver(ALICE, unique="1", content=mime("letter"))
    with store_on(trial.root, trial.clock) as again:
        await again.deliver(ALICE, unique="1", content=mime("letter"), is_repeat=is_repeat)
    await trial.promised(("inbox", "letter, unread"))


async def deliveries_that_the_index_finds(trial: PowerLossTrial) -> None:
    await repeated_deliveries(trial, is_repeat=True)


async def leftovers(trial: PowerLossTrial) -> None:
    pending = await trial.store.submissions.submit_new(ALICE, letter("asked"), SendOptions())
    pending.path.rename(trial.root / ".submissions/preparing" / pending.submission_id)
    trial.disk.settle()
    with store_on(trial.root, trial.clock) as again:
        await again.submissions.remove_unfinished()
    await trial.promised()


async def changes_that_were_cut_off(trial: PowerLossTrial) -> None:
    pending = await schedule_message(trial)
    trial.dies_at = CrashPoint.SUBMISSION_REPLACED
    changed = letter("changed", extended=until(pending.options.scheduled_us))
    with pytest.raises(KilledError):
        await trial.store.messages.update(
            ALICE, pending.draft_id, MessageChange(properties=changed)
        )
    trial.disk.settle()
    with store_on(trial.root, trial.clock) as again:
        await again.submissions.remove_unfinished()
    await trial.promised(("sentitems", "changed"), sent="changed")


async def changes_after_a_start(trial: PowerLossTrial) -> None:
    """A start knows that pending submissions may be copies of their drafts."""
    pending = await schedule_message(trial)
    changed = letter("changed", extended=until(pending.options.scheduled_us))
    expected = Found(Counter(["changed"]), Counter([("sentitems", "changed")]))
    await trial.check(
        lambda found: found == expected,
        lambda store: store.messages.update(
            ALICE, pending.draft_id, MessageChange(properties=changed)
        ),
    )


async def changes_of_settings(trial: PowerLossTrial) -> None:
    await trial.store.folders.every(ALICE)
    for zone in ("Asia/Tokyo", "Europe/Berlin"):
        store, settings = trial.settled_store(), UserSettings(time_zone=zone)
        await store.settings.write(ALICE, settings)

        async def kept(after: FileStore, expected: UserSettings = settings) -> None:
            if await after.settings.read(ALICE) != expected:
                raise PromiseBrokenError

        await trial.check(lambda _: True, kept)


Scenario = Callable[[PowerLossTrial], Awaitable[None]]
SCENARIOS: tuple[Scenario, ...] = (
    *(
        first_submission,
        drafts,
        moves,
        moves_of_tagged_messages,
        repeated_deletes,
        copies,
        copies_of_folders,
        sends,
        sends_rewritten,
        rejected_submissions,
    ),
    *(keyed_submissions, keyed_submissions_that_are_named, keyed_submissions_before_their_record),
    *(keyed_submissions_that_a_start_finishes, keyed_submissions_that_a_kill_left),
    *(keyed_submissions_after_a_kill, keyed_submissions_in_an_hour_after_a_kill, keyed_sends),
    keyed_submissions_that_are_open,
    *(failures_of_keyed_submissions, cancellations_of_keyed_submissions),
    *(step_4, step_4_without_a_draft, step_4_without_a_folder, repeated_cancellations),
    *(failures, damaged_submissions, scheduled_sends, changes_of_scheduled_sends, cancelled_sends),
    *(sends_cancelled_by_an_operator, holds, holds_of_scheduled_sends, releases),
    *(rejected_changes_of_scheduled_sends, rejected_cancellations, rejected_deletes),
    *(deliveries, repeated_deliveries, deliveries_that_the_index_finds, leftovers),
    drafts_after_a_delivery,
    *(changes_that_were_cut_off, changes_after_a_start, changes_of_settings),
)


@pytest.fixture(autouse=True)
def no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk has no journal that keeps names behind what was written."""
    monkeypatch.setattr(maildir, "keeps_order", lambda _: False)


# -- promises


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: getattr(one, "__name__", None))
async def test_accepted_data_survives_any_power_loss(tmp_path: Path, scenario: Scenario) -> None:
    with trial_on(tmp_path) as trial:
        await scenario(trial)


# -- a disk with a journal, on which fewer syncs are needed


OF_A_SECOND_SYNC = (
    *(rejected_submissions, rejected_changes_of_scheduled_sends, rejected_cancellations),
    rejected_deletes,
    repeated_deliveries,
    deliveries_that_the_index_finds,
)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> Callable[[PowerLossTrial], None]:
    """Return a function that makes a trial's disk one on which all becomes durable in its order."""

    def prepare(trial: PowerLossTrial) -> None:
        trial.disk.in_order = True
        monkeypatch.setattr(maildir, "keeps_order", lambda _: True)
        monkeypatch.setattr(maildir, "_write_back", trial.disk.write_back)

    return prepare


@pytest.mark.parametrize(
    "scenario",
    sampled((one for one in SCENARIOS if one not in OF_A_SECOND_SYNC), one_of=4),
    ids=lambda one: getattr(one, "__name__", None),
)
async def test_accepted_data_survives_where_all_becomes_durable_in_its_order(
    tmp_path: Path, in_order, scenario: Scenario
) -> None:
    with trial_on(tmp_path) as trial:
        in_order(trial)
        await scenario(trial)


# -- each sync

SYNCED_BY = frozenset(
    (
        *("sync", "sync_ready", "sync_scheduled", "sync_preparing", "sync_directory"),
        "write_synced",
        *("make_directory", "make_directories"),
        "finish_content",
    )
)
MODULES = (
    *(
        "store/mailbox/messages.py",
        "store/mailbox/inbox.py",
        "store/mailbox/folders.py",
        "store/mailbox/settings_file.py",
    ),
    *("store/mailbox/folder_tree.py", "store/mailbox/keywords.py"),
    "submission/outbox/unfinished.py",
    *(
        "submission/outbox/submit.py",
        "submission/outbox/scheduled.py",
        "submission/outbox/ready_submissions.py",
        "submission/outbox/on_disk.py",
        "submission/outbox/idempotency.py",
    ),
)
# They say where a folder is shown, or which id it has; what is in it does not depend on them.
OF_FOLDERS = (
    *("mailbox", "make_folder", "write_folder_id"),
    *("resubscribe", "_lock", "_rename_all"),
)


def sync_sites() -> list[str]:
    """Return every place in the store that syncs a file or a directory of messages or pending submissions."""
    found = []
    for module in MODULES:
        path = Path(maildir.__file__).parents[2] / module
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef) or function.name in SYNCED_BY:
                continue
            if module.startswith("store/mailbox/folder") and function.name in OF_FOLDERS:
                continue
            lines = {
                call.lineno
                for call in ast.walk(function)
                if isinstance(call, ast.Call)
                and getattr(call.func, "attr", getattr(call.func, "id", "")) in SYNCED_BY
            }
            found += [f"{module}:{function.name}:{line}" for line in lines]
    return sorted(found)


@pytest.fixture(scope="module")
def sites_of(tmp_path_factory: pytest.TempPathFactory) -> dict[Scenario, set[str]]:
    """Which syncs each scenario reaches."""
    found = {}
    for number, scenario in enumerate(SCENARIOS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maildir, "keeps_order", lambda _: False)
            with trial_on(tmp_path_factory.mktemp(f"trial-{number}")) as trial:
                trial.is_dry_run = True
                uvloop.run(scenario(trial))
                found[scenario] = set(trial.disk.sites)
    return found


@pytest.mark.parametrize("site", sampled(sync_sites(), one_of=4))
def test_every_sync_is_necessary(tmp_path: Path, sites_of, site: str) -> None:
    reaching = [one for one, sites in sites_of.items() if site in sites]
    assert reaching, "no scenario reaches it"
    for number, scenario in enumerate(reaching):
        with trial_on(tmp_path / str(number)) as trial:
            trial.disk.fate = lambda asked: "is left out" if asked == site else "works"
            try:
                uvloop.run(scenario(trial))
            except PromiseBrokenError:
                return
    names = sorted(scenario.__name__ for scenario in reaching)
    raise AssertionError(f"nothing shows that it is needed: {', '.join(names)}")
