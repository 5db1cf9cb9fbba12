"""What the mail-flow rules cost a message: processor time of one evaluation, without I/O.

    make bench-rules

A message of 4 KB to ten recipients, none of whom a rule matches. Each line is the median of several
rounds. The rules are of ten kinds in equal shares, each with a value of its own, as an administrator
with a thousand customers writes them; none reads a body. What the shipped rules cost a whole relay:
`make bench-versions OLD=HEAD WORKLOADS=small ARGS=--old-without-rules`.

Exit codes: 0, 1 if 1,000 rules take BOUND_MS or more.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from relay.message.envelope import Source
from relay.message.verdict import ExaminedMessage
from relay.policy.engine import RuleSet
from relay.policy.rule_files import read_rules
from relay.policy.rule_tests import examined_message

TOP = Path(__file__).resolve().parents[2]
BOUND_MS = 1.0  # for 1,000 rules
RUNS, ROUNDS = 200, 9
KINDS = (
    "sender = '*@customer{}.example'",
    "recipient = 'box{}@in.test'",
    "subject = '*order {}*'",
    "header = {{ name = 'X-Customer', matches = 'c{}' }}",
    "direction = 'inbound', sender = 'manager{}@*'",
    "source = 'smtp', size_over = '{} MiB'",
    "direction = 'outbound', recipient = '*@partner{}.example'",
    "header = {{ name = 'X-Kind-{}', matches = 'yes*' }}",
    "subject = 'news {}:*', sender = '*@news.example'",
    "attachment_name = '*.x{}'",
)
CONTENT = (
    b"Received: from client.example by relay.example with ESMTP id x; Mon, 23 Nov 2026 00:00:00 +0000\r\n"
    b"From: Ann <ann@customer.example>\r\nTo: box@in.test\r\nSubject: The order of today\r\n"
    b"Date: Mon, 23 Nov 2026 00:00:00 +0000\r\nMessage-ID: <1@customer.example>\r\n"
    b"X-Customer: none\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    + b"A line of the message that has some words in it.\r\n"
    * 80
)


def main() -> int:
    """Measure, and print."""
    print(f"{'rules':<56} {'ms a message':>12}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            "none": measured(RuleSet()),
            "shipped": measured(read_rules(TOP / "policies")),
            "100 of ten kinds": measured(written(folder, 100, KINDS)),
            "1,000 of ten kinds": measured(written(folder, 1000, KINDS)),
        }
        for kind in KINDS:
            figures[f"1,000 of {kind.format('N')}"[:56]] = measured(written(folder, 1000, [kind]))
    for what, cost_ms in figures.items():
        print(f"{what:<56} {cost_ms:>12.3f}")
    return int(figures["1,000 of ten kinds"] >= BOUND_MS)


def written(folder: Path, count: int, kinds: Iterable[str]) -> RuleSet:
    """Write so many rules and read them."""
    kinds = list(kinds)
    (folder / "10-rules.toml").write_text(
        "".join(
            f"[[rule]]\nname = 'rule {number}'\nwhen = {{ {kinds[number % len(kinds)].format(number + 1)} }}\n"
            "then = [ { bcc = 'archive@in.test' } ]\n"
            for number in range(count)
        )
    )
    return read_rules(folder)


def message() -> ExaminedMessage:
    """Return a message that is not parsed yet, as acceptance makes it."""
    recipients = [f"person{number}@in.test" for number in range(10)]
    return examined_message(
        "ann@customer.example", recipients, CONTENT, source=Source.SMTP, local_domains={"in.test"}
    )


def measured(rules: RuleSet, runs: int = RUNS, rounds: int = ROUNDS) -> float:
    """Return the milliseconds of processor time of one evaluation."""
    found = []
    for _ in range(rounds):
        messages = [message() for _ in range(runs)]
        start_s = time.process_time()
        hits = [rules.evaluate(one).hits for one in messages]
        found.append((time.process_time() - start_s) / runs * 1000)
        assert not any(hits)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
