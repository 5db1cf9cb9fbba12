"""A relay in a control group whose limit of memory the kernel enforces, with only its processes in it."""

import base64
import json
import smtplib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Barrier

import pytest

from relay.operation.app.memory import IDLE_BYTES, counted_bytes
from tests.integration.test_cloud_image import (
    ALICE,
    beside,  # noqa: F401 - a fixture
    service,  # noqa: F401 - a fixture
)
from tests.support.dev_process import DevProcess
from tests.support.graph_client import people
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.scans import scanned

GATE = True
MIB = 1 << 20
BURST = 500
MAILS, CLIENTS = 300, 10
_CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(autouse=True)
def _on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folders are in memory, the files of a relay are part of what it uses."""
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")


class ControlGroup:
    """A control group of version 1 or 2."""

    def __init__(self, name: str, size_bytes: int) -> None:
        old = _CGROUPS / "memory"
        self.place = (old if old.is_dir() else _CGROUPS) / name
        limit, swap, self._events = (
            ("limit_in_bytes", "memsw.limit_in_bytes", "oom_control")
            if old.is_dir()
            else ("max", "swap.max", "events")
        )
        try:
            self.place.mkdir()
            (self.place / f"memory.{limit}").write_text(str(size_bytes))
        except OSError as error:
            self.close()
            pytest.skip(f"no limit of memory can be set: {error}")
        if (path := self.place / f"memory.{swap}").exists():
            path.write_text(str(size_bytes if old.is_dir() else 0))

    @property
    def used_bytes(self) -> int:
        return counted_bytes((self.place / "memory.stat").read_text())

    @property
    def killed(self) -> int:
        """How many processes the kernel has killed for lack of memory."""
        text = (self.place / f"memory.{self._events}").read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def close(self) -> None:
        if self.place.is_dir():
            until("no process is in it", lambda: not (self.place / "cgroup.procs").read_text())
            self.place.rmdir()


@contextmanager
def within(relay: RelayProcess, size_bytes: int) -> Iterator[ControlGroup]:
    """Start a relay in a group of its own; see that it lacked no memory."""
    group = ControlGroup(relay.folder.name, size_bytes)
    words = ["sh", "-c", 'echo $$ >"$0"/cgroup.procs; exec "$@"', str(group.place)]
    plain = relay.start_command()
    relay.start_command = lambda: [*words, *plain]  # type: ignore[method-assign]
    relay.user = 0
    try:
        relay.start()
        yield group
        assert group.killed == 0
        assert '"state":"refuse"' not in relay.log
        assert relay.stop() == 0
    finally:
        relay.kill()
        group.close()


def send(port: int, *mails: tuple[str, bytes], source: str = "127.0.0.1") -> None:
    """Send messages by SMTP, by several clients at once, one for each connection."""

    def sent(mail: tuple[str, bytes]) -> None:
        address, content = mail
        with smtplib.SMTP("127.0.0.1", port, source_address=(source, 0)) as client:
            client.sendmail(ALICE, address, content)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(sent, mails))


def small(address: str) -> list[tuple[str, bytes]]:
    return [(address, scanned(10_000, subject=f"scan {number}")) for number in range(MAILS)]


@long
def test_printers_send_through_a_relay_of_128_mib(
    service: RelayProcess,  # noqa: F811 - the fixture
) -> None:
    with within(service, 128 * MIB) as group:
        port = int(service.ready["smtp"][0].rpartition(":")[2])
        idle_bytes = group.used_bytes
        send(port, ("ann@customer.example", scanned(22_000_000)), source="127.0.0.2")
        send(port, *small("ann@customer.example"), source="127.0.0.2")
        # no more than Exchange Online takes: 30 messages a minute
        until("some have left", lambda: service.log.count('"status":"relayed"') == 10)
        print(f"idle {idle_bytes / MIB:.1f} MiB, after the mail {group.used_bytes / MIB:.1f} MiB")
        assert idle_bytes < IDLE_BYTES


@long
def test_a_development_relay_of_160_mib(dev) -> None:
    relay: DevProcess = dev("--no-demo", start=False)
    with within(relay, 160 * MIB) as group:
        idle_bytes = group.used_bytes
        send(relay.smtp_address()[1], *small("ann@customer.example"))
        relay.until_messages("ann@customer.example", 10)
        for path in ("/", "/queue", "/internet", "/health", "/?q=subject:scan"):
            assert relay.get(path).status_code == 200
        print(f"idle {idle_bytes / MIB:.1f} MiB, after the mail {group.used_bytes / MIB:.1f} MiB")


@long
def test_a_json_body_of_30_mb_is_converted_in_192_mib(serve) -> None:
    relay: RelayProcess = serve(start=False)
    with within(relay, 192 * MIB) as group:
        attachment = {
            "@odata.type": "#microsoft.graph.fileAttachment",
            "name": "large.bin",
            "contentBytes": base64.b64encode(Random(3).randbytes(22_400_000)).decode(),
        }
        mail = {"subject": "l", "toRecipients": people("bob@example.test")}
        body = json.dumps({"message": mail | {"attachments": [attachment]}}).encode()
        answer = relay.graph("POST", "/me/sendMail", body=body)
        assert answer.status == 202
        relay.until_final(answer.headers["x-relay-message-id"])
        print(f"after the mail {group.used_bytes / MIB:.1f} MiB")


@long
def test_500_mails_of_800_kb_at_once_have_an_answer_in_192_mib(serve) -> None:
    smtp = {"listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.0/8"]}
    relay: RelayProcess = serve(start=False, config={"smtp": [smtp]})
    large, together = scanned(590_000), Barrier(BURST + 1)

    def code(_: int) -> int:
        with smtplib.SMTP("127.0.0.1", port) as client:
            together.wait()
            try:
                client.sendmail(ALICE, "bob@example.test", large)
            except smtplib.SMTPResponseException as error:
                return error.smtp_code
        return 250

    with within(relay, 192 * MIB), ThreadPoolExecutor(BURST) as clients:
        port = int(relay.ready["smtp"][0].rpartition(":")[2])
        codes = clients.map(code, range(BURST))
        together.wait()
        send(port, *small("bob@example.test")[:CLIENTS], source="127.0.0.2")  # no 452 for others
        assert {*codes} == {250, 452}
