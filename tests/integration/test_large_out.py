"""Large messages relayed unchanged, without loading them into memory."""

import asyncio
import hashlib
from pathlib import Path

from relay.base.files import FileOctets
from relay.base.message.content import LargeContent
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.spools import new_message, spool_on

BODY_BYTES = 60_000_000
GROWTH_BYTES_MAX = 30_000_000
HEADER = b"From: <alice@example.test>\r\nSubject: large\r\nMessage-ID: <large@example.test>\r\n"
LINE = b"x" * 500 + b".\r\n" + b".\r\n"


def most_memory_bytes(relay: RelayProcess) -> int:
    """The most that the relay's process has had in memory (VmHWM)."""
    assert relay.process is not None
    reported = Path(f"/proc/{relay.process.pid}/status").read_text()
    return 1024 * int(reported.partition("VmHWM:")[2].split()[0])


async def put_into_spool(
    relay: RelayProcess, content: LargeContent, next_hops: dict[str, str]
) -> str:
    """Put a message into the spool of a relay that does not run; return its queue id."""
    hops = [(hop, address) for address, hop in next_hops.items()]
    message = new_message(hops, account="alice@example.test", contents=(content,))
    async with spool_on(relay.folder / "state/spool.sqlite") as spool:
        return (await spool.accept(message, claim=False)).queue_id


@long
def test_a_large_message_is_relayed_without_loading_it_into_memory(
    remotes: Remotes, tmp_path: Path, serve
) -> None:
    octets = HEADER + b"\r\n" + LINE * (BODY_BYTES // len(LINE))
    path = tmp_path / "body"
    path.write_bytes(octets[len(HEADER) :])
    content = LargeContent(HEADER, (FileOctets(path, 0, path.stat().st_size),), eight_bit=False)
    good = remotes.start("a.test")
    remotes.start("b.test", replies={"DOT": "552 5.3.4 too large"})
    relay = serve(remotes)
    idle_bytes = most_memory_bytes(relay)
    relay.stop()
    hops = {"x@a.test": "mx:a.test", "y@b.test": "mx:b.test", "bob@example.test": "local"}
    queue_id = asyncio.run(put_into_spool(relay, content, hops))
    relay.start()
    relay.until_final(queue_id)
    assert relay.states(queue_id) == {
        "x@a.test": "relayed", "y@b.test": "failed", "bob@example.test": "delivered",
    }  # fmt: skip
    expected = hashlib.sha256(octets).hexdigest()
    assert hashlib.sha256(received(good, "x@a.test").content).hexdigest() == expected
    home = relay.folder / "mail/example.test/bob"
    [delivered] = [*home.glob("new/*"), *home.glob("cur/*")]
    assert f",S={delivered.stat().st_size}" in delivered.name
    with delivered.open("rb") as file:
        file.seek(delivered.stat().st_size - len(octets))
        assert hashlib.file_digest(file, "sha256").hexdigest() == expected
    until("the report is there", lambda: relay.subjects() == ["Undeliverable: large"])
    [report] = relay.maildir()
    assert [part.get_content_type() for part in report.get_payload()][2:] == ["text/rfc822-headers"]
    assert most_memory_bytes(relay) - idle_bytes < GROWTH_BYTES_MAX
    assert relay.faults() == []
    files = relay.folder / "state/spool.sqlite-content"
    until("the spool let go of the body", lambda: not list(files.iterdir()))
