"""Users who write, send, change and cancel messages while the relay is killed repeatedly.

Each message has a subject of its own, and every answer to its owner is recorded. Raises
AssertionError that names the message and what is wrong with it. See docs/design.md 7, invariants
1, 2 and 10.
"""

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from relay.store.mailbox.message_file import parse_name
from tests.support.graph_client import Answer, message
from tests.support.in_thread import in_threads
from tests.support.relay_process import RelayProcess, until

PEOPLE = ("alice", "carol", "dave")
FRIEND = "bob"
END = "-- the end of it"
FOLDERS = {"sentitems": "Sent", "archive": "Archive", "": ""}


@dataclass
class Letter:
    """One message. `folder` is where its original is to be, "" nowhere; `sent` and `cancelled` say
    the answer to its owner, None while nobody can know; `is_draft`: it was a draft before.
    """

    subject: str
    owner: str
    folder: str = "sentitems"
    is_draft: bool = False
    sent: bool | None = False
    cancelled: bool | None = False


@dataclass
class Storm:
    """The people, and what they know of their messages."""

    relay: RelayProcess
    rng: random.Random
    letters: list[Letter] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def blowing(self) -> Iterator[None]:
        """People are at work inside."""
        with in_threads([partial(self._live, one) for one in PEOPLE], over=self.over):
            yield

    def _live(self, owner: str) -> None:
        rng = random.Random(f"{self.rng.random()}{owner}")
        deeds = (
            self._send,
            self._send,
            self._send_unsaved,
            self._send_elsewhere,
            self._draft_and_send,
            self._send_later,
            self._send_later_changed,
            self._send_later_cancelled,
        )
        while not self.over.is_set():
            with self._lock:
                letter = Letter(f"{owner} {len(self.letters)}", owner)
                self.letters.append(letter)
            rng.choice(deeds)(letter)

    # -- the deeds

    def _send(self, letter: Letter, **headers: str) -> bool:
        letter.sent = None
        body = {"message": self._text(letter), "saveToSentItems": letter.folder != ""}
        answer = self._ask(letter, "POST", "/me/sendMail", body, **headers)
        letter.sent = {202: True}.get(answer.status) if answer else None
        return bool(letter.sent)

    def _send_unsaved(self, letter: Letter) -> None:
        letter.folder = ""
        self._send(letter)

    def _send_elsewhere(self, letter: Letter) -> None:
        letter.folder = "archive"
        self._send(letter, Prefer="relay.sent-folder=archive")

    def _draft_and_send(self, letter: Letter) -> None:
        letter.is_draft = True
        made = self._ask(letter, "POST", "/me/messages", self._text(letter))
        if made:
            letter.sent = None
            answer = self._ask(letter, "POST", f"/me/messages/{made.json()['id']}/send")
            letter.sent = {202: True}.get(answer.status) if answer else None

    def _send_later(self, letter: Letter, wait_s: float = 0.3) -> str:
        letter.sent = None
        body = {"message": self._text(letter) | _later(wait_s)}
        answer = self._ask(letter, "POST", "/me/sendMail", body)
        if answer and answer.status == 202:
            letter.sent = True
            return str(answer.headers["x-relay-message-id"])
        return ""

    def _send_later_changed(self, letter: Letter) -> None:
        if identity := self._send_later(letter, 3600):
            letter.sent = None  # until it has another time, it waits for an hour
            changes = {"importance": "high", **_later(0.1)}
            changed = self._ask(letter, "PATCH", f"/me/messages/{identity}", changes)
            letter.sent = True if changed and changed.status == 200 else None

    def _send_later_cancelled(self, letter: Letter) -> None:
        if identity := self._send_later(letter, 3600):
            letter.cancelled = None
            answer = self._ask(letter, "DELETE", f"/me/messages/{identity}")
            letter.cancelled = {204: True, 409: False}.get(answer.status) if answer else None

    def _text(self, letter: Letter) -> dict[str, Any]:
        text = f"{letter.subject}\r\n" * 400 + END
        return message(to=[f"{FRIEND}@example.test"], subject=letter.subject, text=text)

    def _ask(
        self, letter: Letter, method: str, path: str, body: Any = None, **headers: str
    ) -> Answer | None:
        """The answer; None when the relay was not there, or died before it had answered."""
        try:
            return self.relay.graph(method, path, body, token=letter.owner, headers=headers)
        except (OSError, http.client.HTTPException, KeyError, IndexError):
            self.over.wait(0.01)
            return None

    # -- what must hold when it is over

    def check(self, *, faults: Sequence[str] = ()) -> None:
        """Every message is where it must be, once, whole; nothing is left over. The log may have
        errors with these texts.
        """
        until("nothing is being sent", lambda: not self.relay.pending_submissions(), timeout_s=60)
        self._send_what_still_waits()
        self._use_every_mailbox()
        until(
            "no submission is pending",
            lambda: not self.relay.pending_submissions() and not self.relay.scheduled_submissions(),
            timeout_s=60,
        )
        until("the queue is empty", lambda: not self.relay.queue(), timeout_s=60)
        came = self._found(FRIEND, "")
        copies = {
            (owner, folder): self._found(owner, folder)
            for owner in PEOPLE
            for folder in ("Sent", "Archive", "Drafts", "Trash")
        }
        for letter in self.letters:
            self._check_letter(letter, came, copies)
        known = {one.subject for one in self.letters}
        strangers = {subject for found in (came, *copies.values()) for subject in found} - known
        assert strangers == set(), f"nobody wrote {strangers}"
        mail = self.relay.folder / "mail"
        submissions = (one for one in mail.glob(".submissions/*/*") if one.parent.name != "log")
        left = [str(path) for path in (*mail.rglob("tmp/*"), *submissions)]
        assert left == [], f"left over: {left}"
        assert self.relay.metric("relay_queue_unaccounted") == 0
        others = [line for line in self.relay.faults() if not any(text in line for text in faults)]
        assert others == [], "\n".join(others)

    def _check_letter(
        self, letter: Letter, came: Counter[str], copies: dict[tuple[str, str], Counter[str]]
    ) -> None:
        times = came[letter.subject]
        assert times <= 1, f"sent {times} times: {letter}"
        if letter.sent and letter.cancelled is False:
            assert times == 1, f"lost: {letter}"
        if letter.cancelled:
            assert times == 0, f"sent though it was cancelled: {letter}"
        where = {
            folder: copies[letter.owner, folder][letter.subject]
            for folder in ("Sent", "Archive", "Drafts", "Trash")
        }
        where = {folder: count for folder, count in where.items() if count}
        if times:
            wanted = {FOLDERS[letter.folder]: 1} if letter.folder else {}
            assert where == wanted, f"found in {where}: {letter}"
        elif letter.cancelled is not False or letter.is_draft:
            assert where in ({}, {"Drafts": 1}, {"Trash": 1}), f"found in {where}: {letter}"
        else:
            assert where == {}, f"left in {where}: {letter}"

    def _send_what_still_waits(self) -> None:
        """A change that was cut off may have left a message that waits for an hour."""
        for owner in PEOPLE:
            for draft in self.relay.messages("drafts", token=owner):
                letter = next(one for one in self.letters if one.subject == draft["subject"])
                if not letter.cancelled and not letter.is_draft:
                    path = f"/me/messages/{draft['id']}"
                    answer = self.relay.graph("PATCH", path, _later(-1), token=owner)
                    assert answer.status in (200, 400, 404, 409), answer.body  # or it was sent

    def _use_every_mailbox(self) -> None:
        """The first use removes what is half-written; this one leaves nothing itself."""
        for owner in PEOPLE:
            made = self.relay.graph("POST", "/me/messages", message(subject="last"), token=owner)
            for _ in ("to Deleted Items", "for good"):
                path = f"/me/messages/{made.json()['id']}"
                assert self.relay.graph("DELETE", path, token=owner).status == 204

    def _found(self, person: str, folder: str) -> Counter[str]:
        """The subjects in a folder; every file is as long as its name says, and whole."""
        home = self.relay.folder / "mail/example.test" / person / (f".{folder}" if folder else "")
        found: Counter[str] = Counter()
        for path in (*home.glob("new/*"), *home.glob("cur/*")):
            found[_subject_of_whole(path)] += 1
        return found


def _later(wait_s: float) -> dict[str, Any]:
    due = (datetime.now(UTC) + timedelta(seconds=wait_s)).isoformat()
    return {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": due}]}


def _subject_of_whole(path: Path) -> str:
    content = path.read_bytes()
    name = parse_name(path.name)
    assert name is not None
    assert name.size == len(content), f"{path.name} has {len(content)} octets"
    assert END.encode() in content, f"{path.name} is cut short"
    subject = content.partition(b"\r\nSubject: ")[2].partition(b"\r\n")[0]
    return subject.decode()
