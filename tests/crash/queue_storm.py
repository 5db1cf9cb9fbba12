"""Clients, remote hosts, an operator and a metrics scraper around a relay that is killed.

Each message has a token of its own, is handed in once, and what its client heard is kept; the
remote hosts are not killed, so that what they took is known. Raises AssertionError that names the
messages and what is wrong with them. See docs/design.md 7, invariants 1, 2, 5
and 10; RFC 1047 (who may get a second copy).
"""

import http.client
import random
import re
import smtplib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.support.in_thread import in_threads
from tests.support.journeys import outcomes
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import DROP, RemoteMx
from tests.support.remotes import Remotes

END = "-- the end of it"
LOCAL = "example.test"
FRIENDS = ("bob", "dave")
SMTP_CLIENTS, GRAPH_CLIENTS = 4, 2
SENDERS = {"smtp": "alice", "graph": "carol"}
TAKES, FAILS = "takes", "fails"
FATES = {
    "takes.test": TAKES,
    "greylists.test": TAKES,
    "drops.test": TAKES,  # closes the connection behind the dot, one time of three
    "knows-nobody.test": FAILS,
    "refuses.test": FAILS,  # at the dot
}
_LARGE_PARTS = 12  # one message of so many is kept in a file
_PAUSE_S = 0.004  # between a client's messages: the machine has others to serve
_SESSION_LETTERS = 50
_DOWN_S = 0.1  # before somebody asks a relay again that is not there
_SCRAPE_S = 0.05
_REPORTED = re.compile(rb"^Final-Recipient: *rfc822; *(\S+)", re.IGNORECASE | re.MULTILINE)
_TOKEN = re.compile(rb"^Subject: (t\d+)\r?$", re.MULTILINE)


@dataclass
class Letter:
    """One message; `accepted` is what its client heard, None where it never heard anything."""

    token: str
    sender: str
    recipients: list[str]
    content: str = field(repr=False)
    accepted: bool | None = None

    def addresses(self, fate: str) -> list[str]:
        return [one for one in self.recipients if FATES.get(one.partition("@")[2]) == fate]


@dataclass
class Arrived:
    """Where each thing was found at the end, by address, or by token and mailbox."""

    dots: Counter[str]  # final dots at remote hosts, whatever they were answered
    taken: Counter[str]  # of these, those answered 250
    reported: Counter[tuple[str, str]]  # whose Inbox, about whom
    delivered: Counter[tuple[str, str]]  # mailbox, token

    def parts(self, letter: Letter) -> list[bool]:
        """Whether each recipient of a letter was served."""
        taken = [self.taken[one] > 0 for one in letter.addresses(TAKES)]
        failed = [self.reported[letter.sender, one] > 0 for one in letter.addresses(FAILS)]
        local = [one.partition("@")[0] for one in letter.recipients if one.endswith("@" + LOCAL)]
        return taken + failed + [self.delivered[one, letter.token] > 0 for one in local]


# One host closes so many connections behind the dot that some letters would end as unanswered.
PATIENT = {"delivery": {"indeterminate_max": 1000}}


class QueueStorm:
    """A relay, or several on one queue, its senders and its sites."""

    pause_s = _PAUSE_S

    def __init__(
        self,
        remotes: Remotes,
        rng: random.Random,
        make: Callable[[], Sequence[RelayProcess]] | None = None,
    ) -> None:
        """`make` returns the relays, if there are several."""
        self.rng = rng
        drops = [DROP if rng.random() < 1 / 3 else "250 2.0.0 Ok" for _ in range(2000)]
        self._hosts: list[RemoteMx] = [
            remotes.start("takes.test"),
            remotes.start("greylists.test", greylist=True),
            remotes.start("drops.test", replies={"DOT": [*drops, "250 2.0.0 Ok"]}),
            remotes.start("knows-nobody.test", replies={"RCPT": "550 5.1.1 no such user"}),
            remotes.start("refuses.test", replies={"DOT": "554 5.7.1 not this"}),
        ]
        config = PATIENT | {"suppression": {"after": 1}}
        self.relays = [remotes.relay(config=config)] if make is None else list(make())
        self.silent: set[RelayProcess] = set()  # of these, those that answer nobody
        self.letters: list[Letter] = []
        self.unaccounted: list[float] = []  # one for each look at the figures
        self.held = self.released = 0
        self._over = threading.Event()
        self._lock = threading.Lock()

    @property
    def relay(self) -> RelayProcess:
        """The first one."""
        return self.relays[0]

    @property
    def accepted(self) -> int:
        """How many letters had their 250 or 202."""
        return sum(one.accepted is True for one in self.letters)

    @contextmanager
    def blowing(self) -> Iterator[None]:
        """Everybody is at work inside."""
        work = [self._client(self._by_smtp)] * SMTP_CLIENTS
        work += [self._client(self._by_graph)] * GRAPH_CLIENTS
        work += [self._operate, self._scrape]
        with in_threads(work, over=self._over):
            yield

    # -- clients

    def _client(self, send: Callable[[random.Random], None]) -> Callable[[], None]:
        def run() -> None:
            with self._lock:
                rng = random.Random(self.rng.random())
            while not self._over.wait(self.pause_s):
                with suppress(OSError, smtplib.SMTPException, http.client.HTTPException):
                    send(rng)

        return run

    def _by_smtp(self, rng: random.Random) -> None:
        with self._one(rng).smtp() as session:
            session.ehlo()
            for _ in range(_SESSION_LETTERS):
                if self._over.wait(self.pause_s):
                    return
                letter = self._write("smtp", rng)
                codes = [session.mail(f"{letter.sender}@{LOCAL}")[0]]
                codes += [session.rcpt(address)[0] for address in letter.recipients]
                if set(codes) != {250}:
                    letter.accepted = False
                    session.rset()
                    continue
                code = session.data(letter.content)[0]
                letter.accepted = True if code == 250 else self.refused(code)

    def _by_graph(self, rng: random.Random) -> None:
        letter = self._write("graph", rng)
        people = [{"emailAddress": {"address": one}} for one in letter.recipients]
        body = {"contentType": "text", "content": letter.content.partition("\r\n\r\n")[2]}
        message = {"subject": letter.token, "body": body, "toRecipients": people}
        body = {"message": message, "saveToSentItems": False}
        try:
            answer = self._one(rng).graph("POST", "/me/sendMail", body, token=letter.sender)
        except ConnectionRefusedError:  # it never left the client
            letter.accepted = False
            self._over.wait(_DOWN_S)
        else:
            letter.accepted = answer.status == 202

    def refused(self, code: int) -> bool | None:
        """What is known of a letter whose final dot was answered with this code."""
        return False

    def _one(self, rng: random.Random) -> RelayProcess:
        """Return a relay that may answer."""
        return rng.choice([one for one in self.relays if one not in self.silent])

    def _write(self, way: str, rng: random.Random) -> Letter:
        """A letter to one remote address at least; it counts from here on."""
        with self._lock:
            token = f"t{len(self.letters)}"
            domains = rng.sample(list(FATES), rng.choice((1, 1, 2)))
            people = [f"{token}@{domain}" for domain in domains]
            people += [f"{one}@{LOCAL}" for one in FRIENDS if rng.random() < 0.4]
            lines = 3500 if rng.randrange(_LARGE_PARTS) == 0 else rng.randint(5, 60)
            text = f"{token} {'abcdefgh' * 7}\r\n" * lines
            content = f"Subject: {token}\r\n\r\n{text}{END}\r\n"
            letter = Letter(token, SENDERS[way], people, content)
            self.letters.append(letter)
            return letter

    # -- who looks after the relay

    def _operate(self) -> None:
        """Hold what is for one domain, for each until an entry was held, and let it go again."""
        with self._lock:
            rng = random.Random(self.rng.random())
        while not self._over.is_set():
            with suppress(OSError, http.client.HTTPException):
                one, other = self._one(rng), self._one(rng)
                for domain in rng.sample(list(FATES), 1 if self.held else len(FATES)):
                    self.held += operation(one, "hold", {"domain": domain})
                self._over.wait(rng.uniform(0, 0.2))
                self.released += operation(other, "release", {"state": "held"})
            self._over.wait(rng.uniform(0, 0.2))

    def _scrape(self) -> None:
        rng = random.Random(len(self.relays))
        while not self._over.wait(_SCRAPE_S):
            with suppress(OSError, http.client.HTTPException, KeyError, AssertionError):
                self.unaccounted.append(self._one(rng).metric("relay_queue_unaccounted"))

    # -- what must hold when it is over

    def settle(self) -> None:
        """Let everything come to its end; the relays run."""

        def is_empty() -> bool:
            operation(self.relay, "release", {"state": "held"})  # an ordered hold comes later
            return not self.relay.queue()

        for one in self.relays:
            until("no submission is pending", lambda one=one: not one.pending_submissions())
        until("the queue is empty", is_empty, timeout_s=90)

    def check(self) -> None:
        """Nothing that was accepted is lost, nothing that was refused came, nobody got too much."""
        arrived = self._arrived()
        letters = {
            state: [one for one in self.letters if one.accepted is state]
            for state in (True, False, None)
        }
        lost = [one for one in letters[True] if not all(arrived.parts(one))]
        assert lost == [], f"{len(lost)} of {len(letters[True])} accepted letters were lost"
        came = [one for one in letters[False] if any(arrived.parts(one))]
        assert came == [], "came though they were refused"
        torn = [one for one in letters[None] if len(set(arrived.parts(one))) > 1]
        assert torn == [], "some recipients were served and some were not"
        assert {one: times for one, times in arrived.delivered.items() if times > 1} == {}
        assert {one: times for one, times in arrived.reported.items() if times > 1} == {}
        for address, dots in arrived.dots.items():
            if dots > 1:
                found_text = outcomes(self.relay.journey(address), address)
                allowed = 1 + found_text.count("indeterminate")
                assert dots <= allowed, f"{address} had {dots} copies, with {found_text}"

    def _arrived(self) -> Arrived:
        envelopes = [one for host in self._hosts for one in host.envelopes]
        assert [one for one in envelopes if END.encode() not in one.content] == []
        dots = Counter(address for one in envelopes for address in one.addresses)
        answered = (one for one in envelopes if one.answered == 250)
        taken = Counter(address for one in answered for address in one.addresses)
        reported = Counter(
            (sender, address.decode())
            for sender in SENDERS.values()
            for content in self._mail_of(sender)
            for address in _REPORTED.findall(content)
        )
        delivered: Counter[tuple[str, str]] = Counter()
        for friend in FRIENDS:
            for content in self._mail_of(friend):
                found = _TOKEN.search(content)
                assert found is not None, content[:500]
                assert END.encode() in content, f"{found[1]!r} is cut short"
                delivered[friend, found[1].decode()] += 1
        return Arrived(dots, taken, reported, delivered)

    def _mail_of(self, person: str) -> Iterator[bytes]:
        for relay in self.relays:
            home = relay.home(person)
            for path in (*home.glob("new/*"), *home.glob("cur/*")):
                yield path.read_bytes()


def operation(relay: RelayProcess, name: str, selector: dict[str, object]) -> int:
    """Execute a queue command; return how many entries it changed."""
    answer = relay.graph("POST", f"/relay/v1/queue/{name}", selector, token=OPERATOR)
    if answer.status == 503:
        return 0
    assert answer.status == 200, f"{name}: {answer.status} {answer.body!r}"
    return int(answer.json()["done"])
