"""What a page of the message list costs a relay in processor time.

    python -m tests.bench.pages
    python -m tests.bench.pages --messages 1000 --rounds 5

A development relay has 10,000 messages, some captured, a few deferred, and is asked for
pages of 50. Each figure is the processor time of the whole process, by /proc, for one request; the
bound is 50 ms. The cost of the same list as whole journeys, by the JSON API, is next to it.
"""

import argparse
import os
import re
import smtplib
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

CONNECTIONS = 4
BOUND_MS = 50.0
REST_S = 0.5
LISTS = {
    "first page": "",
    "state=deferred": "?state=deferred",
    "words of nothing": "?q=nothing+at+all",
    "subject of nothing": "?q=subject:nothing",
    "a word of all texts": "?q=lorem",
    "has:attachment": "?q=has:attachment",
    "is:unread": "?q=is:unread",
    "a mailbox": f"?mailbox={quote('customer7@other.test')}",
}
_ARRIVED = re.compile(
    r'^relay_attempts_total\{[^}]*outcome="(?:delivered|captured)"[^}]*\} (\S+)', re.MULTILINE
)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name, cost_ms in lists(options.messages, options.rounds).items():
        print(f"{name:<32}{cost_ms:>8.1f} ms   (bound: {BOUND_MS:g} ms)")


def lists(messages: int, rounds: int) -> dict[str, float]:
    """Return the processor time of each list in milliseconds."""
    keep = f"--keep-messages={max(2 * messages, 1000)}"
    with DevProcess("--no-demo", keep) as relay:
        mail = [_mail(number) for number in range(messages)]
        send(relay, mail)
        until("the relay is at rest", lambda: is_at_rest(relay), timeout_s=60)
        headers = {"authorization": f"Bearer {relay.ready['token']}"}
        base = relay.ready["pages"]
        found = {}
        with httpx.Client(base_url=base, trust_env=False, timeout=120, headers=headers) as client:
            urls = LISTS | {"the same by JSON": "relay/v1/messages?limit=50"}
            last = _older(client, "", pages=messages // 50 // 2)
            # A first search reads the texts into the indexes of the mailboxes.
            _older(client, LISTS["a word of all texts"], pages=messages)
            for name, url in (urls | {"a page in the middle": last}).items():
                costs = []
                for _ in range(rounds + 1):
                    began_s = cpu_s(relay)
                    client.get(url).raise_for_status()
                    costs.append((cpu_s(relay) - began_s) * 1000)
                found[name] = statistics.mean(costs[1:])  # ticks are 10 ms
        return found


def _older(client: httpx.Client, url: str, *, pages: int) -> str:
    """Return the URL of the page to which so many links lead from a page."""
    for _ in range(pages):
        link = re.search(r'<a rel="next" href="\./([^"]+)"', client.get(url).text)
        if link is None:
            break
        url = link[1].replace("&amp;", "&")
    return url


def _mail(number: int) -> tuple[str, str]:
    """Return recipient and subject."""
    if number % 200 == 0:
        return f"late{number}+451@other.test", f"Reminder {number}"
    if number % 2:
        return f"customer{number % 500}@other.test", f"Invoice {number} for March"
    return "bob@example.test", f"Invoice {number} for March"


def send(relay: DevProcess, mail: Sequence[tuple[str, str]]) -> None:
    """Send messages on several connections; return when all but the deferred ones have arrived."""
    before = arrived(relay)
    wanted = sum("+451" not in recipient for recipient, _ in mail)
    host, _, port = relay.ready["smtp"][0].rpartition(":")

    def submit(part: Sequence[tuple[str, str]]) -> None:
        with smtplib.SMTP(host, int(port)) as client:
            for recipient, subject in part:
                client.sendmail(
                    "alice@example.test", [recipient], f"Subject: {subject}\r\n\r\nlorem ipsum"
                )

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(submit, [mail[number::CONNECTIONS] for number in range(CONNECTIONS)]))
    until("all has arrived", lambda: arrived(relay) >= before + wanted, timeout_s=600)


def arrived(relay: DevProcess) -> float:
    """Return how many copies are in mailboxes."""
    parts = urlsplit(relay.ready["pages"])
    text = httpx.get(f"http://{parts.netloc}/metrics", trust_env=False).text
    return sum(float(number) for number in _ARRIVED.findall(text))


def is_at_rest(relay: DevProcess) -> bool:
    """Whether the relay does next to nothing for half a second: it indexes what has arrived."""
    began_s = cpu_s(relay)
    time.sleep(REST_S)
    return cpu_s(relay) - began_s <= REST_S / 10


def cpu_s(relay: DevProcess) -> float:
    """Return the processor time of the relay's threads."""
    fields = Path(f"/proc/{relay.ready['pid']}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
