"""How long a notification takes: a real relay, 1,000 messages by SMTP, an HTTPS receiver on loopback.

    python -m tests.bench.notifications

From the link in new/ to the request that the receiver reads, in milliseconds: median and 95th percentile, one
message at a time and in a burst. Exit code 1 if a median is 100 ms or more.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.receiver import Receiver
from tests.support.relay_process import RelayProcess
from tests.support.subscribers import LOOPBACK, subscribed, trusting
from tests.support.tls import new_authority

SINGLE, BURST, PAUSE_S, BOUND_MS = 200, 1000, 0.02, 100


def main() -> int:
    came: list[tuple[float, list[str]]] = []

    def note(body: bytes) -> None:
        if body:
            found = [one["resourceData"]["id"] for one in json.loads(body)["value"]]
            came.append((time.time(), found))

    with tempfile.TemporaryDirectory() as folder:
        authority = new_authority(Path(folder))
        with (
            Receiver(authority.issue("IP:127.0.0.1"), on_body=note) as receiver,
            RelayProcess(config=LOOPBACK, environment=trusting(authority)) as relay,
        ):
            subscribed(relay, receiver)
            medians = [
                measure(relay, came, count, pause_s=pause_s, title=title)
                for title, count, pause_s in (
                    ("one at a time", SINGLE, PAUSE_S),
                    ("in a burst", BURST, 0.0),
                )
            ]
    return 0 if max(medians) < BOUND_MS else 1


def measure(
    relay: RelayProcess, came: list[Any], count: int, *, pause_s: float, title: str
) -> float:
    came.clear()
    inbox = relay.home("alice") / "new"
    known = set(inbox.iterdir()) if inbox.exists() else set()
    with relay.smtp() as session:
        for number in range(count):
            session.sendmail(
                "guest@remote.test", ["alice@example.test"], f"Subject: {number}\r\n\r\nx"
            )
            time.sleep(pause_s)
    while sum(len(ids) for _, ids in came) < count:
        time.sleep(0.01)
    at = [moment for moment, ids in came for _ in ids]
    files = [one for one in inbox.iterdir() if one not in known]
    delivered = sorted(one.stat().st_ctime for one in files)  # when new/ got its link
    took = sorted((end - begin) * 1000 for begin, end in zip(delivered, at, strict=True))
    median = statistics.median(took)
    print(
        f"delivery to notification, {title}: median {median:.0f} ms, 95 % {took[int(len(took) * 0.95)]:.0f} ms,"
        f" {count} messages in {len(came)} requests",
        flush=True,
    )
    return median


if __name__ == "__main__":
    sys.exit(main())
