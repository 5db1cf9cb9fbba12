"""A mail store that `relay storage verify` checks."""

from dataclasses import dataclass, field
from pathlib import Path

from relay.mailbox.verify.findings import StoreCounts, StoreFinding
from relay.outbox.verifier import Verifier, VerifierDependencies
from tests.support.manual_clock import ManualClock

ALICE = "alice@example.test"
MAIL = b"From: x@y.test\r\nSubject: one\r\n\r\nHello.\r\n"
LATER_S = 100 * 3600


@dataclass
class Checked:
    """A store with all kinds of files, and a verifier whose clock is 100 hours later."""

    root: Path
    clock: ManualClock
    findings: list[StoreFinding] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.root / "example.test/alice"

    @property
    def submissions(self) -> Path:
        return self.root / ".submissions"

    @property
    def ready(self) -> Path:
        """The submission that is not scheduled."""
        [path] = (self.submissions / "ready").iterdir()
        return path

    def verify(self, *, accounts=None, **options) -> StoreCounts:
        """Run verify; `findings` are those of this run."""
        self.findings = []
        dependencies = VerifierDependencies(
            clock=self.clock,
            hostname="relay.example.test",
            dead_letter=self.root.parent / "dead-letter",
            is_account=lambda account: account == ALICE,
            pause=self.pause,
        )
        verifier = Verifier(self.root, dependencies, on_finding=self.findings.append, **options)
        return verifier.run(accounts)

    def pause(self, seconds: float) -> None:
        self.waited.append(seconds)

    def reported(self) -> list[tuple[str, bool]]:
        return [(str(one.kind), one.repaired) for one in self.findings]

    def message(self, where: str) -> Path:
        """The first file of a directory, such as "new" or ".Drafts/cur"."""
        return min((self.home / where).iterdir())

    def octets(self) -> set[bytes]:
        """The content of every file that could be mail, in any directory; none may be lost."""
        places = [*self.home.rglob("new/*"), *self.home.rglob("cur/*")]
        places += [*self.submissions.rglob("*@*"), *(self.submissions / "corrupt").rglob("*")]
        return {one.read_bytes() for one in places if one.is_file() and not one.is_symlink()}
