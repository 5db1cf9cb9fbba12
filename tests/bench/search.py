"""What a search of the pages costs: a real `relay dev` with 1,000, 10,000 and 50,000 messages in 1,500 mailboxes.

    python -m tests.bench.search                      all three sizes
    python -m tests.bench.search --sizes 10000

The messages have 2 KB of words each and come by SMTP. Then a word of the last one is searched at once, 100 random
messages by a part of a word that only they have, a word that none has, and one that many have: by the API, and
as a page. Times are in milliseconds, median and largest. Exit code 1 if a message is not found.
"""

import argparse
import itertools
import random
import smtplib
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from tests.support.dev_process import DevProcess
from tests.support.relay_config import OPERATOR

MAILBOXES, SAMPLE, CONNECTIONS, WORDS = 1500, 100, 4, 300
DRAWN = random.Random(1)
VOCABULARY = [
    "".join(DRAWN.choices("abcdefghijklmnopqrstuvw", k=DRAWN.randint(2, 11))) for _ in range(20_000)
]
WEIGHTS = list(itertools.accumulate(1 / rank for rank in range(1, len(VOCABULARY) + 1)))


def content(number: int) -> tuple[str, bytes]:
    """Return the recipient and the content of a message."""
    recipient = f"user{number % MAILBOXES}@customer{number % 7}.test"
    text = " ".join(random.Random(number).choices(VOCABULARY, cum_weights=WEIGHTS, k=WORDS))
    head = f"From: App <app@shop.test>\r\nTo: {recipient}\r\nSubject: Order {number}\r\n\r\n"
    return recipient, f"{head}ref{number:06}xyz {text}\r\n".encode()


def send(relay: DevProcess, numbers: range) -> None:
    host, port = relay.ready["smtp"][0].rsplit(":", 1)
    with smtplib.SMTP(host, int(port)) as session:
        for recipient, octets in map(content, numbers):
            session.sendmail("app@shop.test", [recipient], octets)


def searched(relay: DevProcess, text: str, *, page: bool = False) -> tuple[float, list[str], bool]:
    """Return the time in milliseconds, the subjects, and whether this was all."""
    path = "/?q=" if page else "/relay/v1/messages?limit=50&q="
    began_s = time.perf_counter()
    fields = {"Authorization": f"Bearer {OPERATOR}"}
    answer = relay.request("GET", f"{path}{quote(text)}", headers=fields, timeout_s=60)
    took_ms = (time.perf_counter() - began_s) * 1000
    assert answer.status == 200, answer.body
    if page:
        return took_ms, [], b'rel="next"' not in answer.body
    found = answer.json()
    return took_ms, [one["subject"] for one in found["messages"]], found["older"] is None


def measure(size: int) -> bool:
    relay = DevProcess("--no-demo", f"--keep-messages={size + 10}", "--keep-size=20 GiB")
    relay.start()
    try:
        began_s = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            list(
                threads.map(lambda n: send(relay, range(n, size, CONNECTIONS)), range(CONNECTIONS))
            )
        rate = size / (time.perf_counter() - began_s)
        first_ms, *_ = searched(relay, f"ref{size - 1:06}x")
        numbers = DRAWN.sample(range(size), SAMPLE)
        found = [searched(relay, f"EF{one:06}xy") for one in numbers]
        expected = [[f"Order {one}"] for one in numbers]
        missed = sum(
            one[1] != each or not one[2] for one, each in zip(found, expected, strict=True)
        )
        index = sum(one.stat().st_size for one in relay.folder.glob("search-index*"))
        print(f"{size:,} messages, {rate:.0f} a second, index {index / 1e6:.0f} MB")
        print(f"  {missed} of {SAMPLE} not found; the first search at once {first_ms:.0f}")
        rows = [("one message, API", [one[0] for one in found])]
        for title, text in (
            ("one message", "ref000123x"),
            ("none", "nowhereatall"),
            ("most", VOCABULARY[0]),
            ("two letters", "qq"),
            ("three words", " ".join(VOCABULARY[40:43])),
        ):
            for page in (False, True):
                times = [searched(relay, text, page=page) for _ in range(11)]
                rows.append(
                    (
                        f"{title}, {'page' if page else 'API'}{'' if times[0][2] else ' (more)'}",
                        [one[0] for one in times],
                    )
                )
        for title, times in rows:
            print(f"  {title:32} {statistics.median(times):6.0f} {max(times):6.0f}", flush=True)
        return not missed
    finally:
        relay.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    missed = [one for one in parser.parse_args().sizes if not measure(one)]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
