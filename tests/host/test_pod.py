"""A day in a pod: what a kubelet, a node and a disk do to a relay loses no message, and doubles none.

tests/support/kubelet.py says what stands for a kubelet.
"""

import smtplib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count, islice

import pytest

from tests.host.test_container import (
    IMAGE,
    built,
    output,
)
from tests.support import relay_starts
from tests.support.containers import PODMAN
from tests.support.disks import break_off, filled, journaled_disk, mounted
from tests.support.kubelet import give, project
from tests.support.long_tests import long
from tests.support.relay_config import OPERATOR, account, changed, to_toml
from tests.support.relay_process import RelayProcess, until

GATE = True


class InContainer(RelayProcess):
    """A relay in a container of the image, where its folder has the same path."""

    program, host = "", ""

    def start_command(self) -> list[str]:
        words = self.command("serve")[len(relay_starts.RELAY) :]
        options = ["--read-only", "--cap-drop=ALL", "--user=10001:10001", "--network=host"]
        options += [f"--name={self.folder.name}", f"--hostname={self.host}"]
        options.append(f"--volume={self.folder}:{self.folder}")
        return [self.program, "run", "--rm", *options, IMAGE, *words]

    def kill(self, verb: str = "kill") -> None:
        if not self.process_ended:
            output([self.program, verb, self.folder.name], 0)
            self.wait_end()

    def stop(self, *, timeout_s: float = 60) -> int:
        self.kill("stop")
        return self.wait_end()


def sent(relay: RelayProcess, numbers: Iterable[int], accepted: list[str]) -> bool:
    """Send a mail to bob for each number; return whether one was accepted."""
    before = len(accepted)
    for number in numbers:
        with suppress(OSError, smtplib.SMTPException), relay.smtp() as session:
            content = f"Subject: mail {number}\n\nx"
            session.sendmail("alice@example.test", "bob@example.test", content)
            accepted.append(f"mail {number}")
    return len(accepted) > before


@pytest.mark.parametrize("mails", [30, pytest.param(300, marks=long)])
def test_a_day_in_a_pod(mails: int) -> None:
    """The short one is a process of the user; the long one is a container with other host names."""
    relay = (RelayProcess if mails == 30 else InContainer)(
        config={"mailboxes": {"root": "state/mail"}}, environment={"RELAY_IMAGE": "1"}
    )
    del relay.config["policy"]
    if isinstance(relay, InContainer):
        relay.program = built(PODMAN)
        relay.folder.chmod(0o1777)
    else:
        relay.user = 10001
    volume, image, copy = (relay.folder / name for name in ("state", "state.image", "copy"))
    numbers, accepted = count(), []
    one = partial(islice, numbers, 1)

    def apply(token: str, **mailboxes: str) -> None:
        """Replace a ConfigMap and a Secret, projected into one volume."""
        people = [account("bob"), account("alice", token=f"plain:{token}")]
        people.append(account(OPERATOR, role="operate"))
        config = changed(relay.config, {"mailboxes": mailboxes})
        files = {"relay.toml": to_toml(config), "accounts.toml": to_toml({"account": people})}
        project(relay.folder, files, mode=0o440, group=10001)

    def start(host: str) -> None:
        relay.host = host
        give(volume, 10001)
        relay.start()
        until("it takes mail", lambda: sent(relay, one(), accepted))

    apply("first")
    for name in ("mail", "policies"):
        (relay.folder / name).rmdir()
    (relay.folder / "mail").symlink_to(volume / "mail")
    try:
        with journaled_disk(volume, size_bytes=96 << 20):
            start("relay-0")
            sent(relay, islice(numbers, mails // 3), accepted)
            apply("second", catch_all="bob@example.test")
            assert relay.cli("reload").returncode == 0
            for token, status in (("first", 401), ("second", 200)):
                assert relay.get("/v1.0/me", token=token).status_code == status
            relay.submit("x@a.test", ["nobody@example.test"], b"Subject: caught\r\n\r\n")
            accepted.append("caught")
            with ThreadPoolExecutor(2) as clients:
                for _ in range(2):
                    clients.submit(sent, relay, [*islice(numbers, mails // 3)], accepted)
                until("some are sent", lambda: len(accepted) > mails // 2)
                relay.kill()
            start("relay-0-elsewhere")
            with filled(volume):
                until("it refuses", lambda: not sent(relay, one(), accepted))
            until("it takes mail", lambda: sent(relay, one(), accepted))
            break_off(volume)
            until("it refuses", lambda: not sent(relay, one(), accepted))
            relay.kill()
            output(["cp", "--sparse=always", image, copy], 0)  # the kernel may still know the first
        with mounted(copy, volume):
            start("relay-0-again")
            sent(relay, islice(numbers, max(0, mails - len(accepted))), accepted)
            until("all are there", lambda: set(accepted) <= set(relay.subjects("bob")))
            assert len(relay.subjects("bob")) == len(set(relay.subjects("bob")))
            assert relay.metric("relay_queue_unaccounted") == 0
            assert relay.stop() == 0
    finally:
        relay.close()
