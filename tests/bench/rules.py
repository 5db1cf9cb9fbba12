"""What the mail-flow rules cost: processor time of one evaluation, and how long others wait.

    make bench ARGS=rules

A message of 4 KB to ten recipients, none of whom a rule matches. Each line is the median of several
rounds. The rules are of ten kinds in equal shares, each with a value of its own, as an administrator
with a thousand customers writes them; none reads a body. What the shipped rules cost a whole relay:
`make bench-versions OLD=HEAD WORKLOADS=small ARGS=--old-without-rules`.

The last line is about a relay with fifty rules on the text of messages: a stranger sends 1 MiB of
hostile html after another on four connections, and another client messages of 4 KB; what it waits
for is the 250 after its final dot.

Exit codes: 0, 1 if 1,000 rules take BOUND_MS or more, or the other client waits for WAIT_BOUND_MS.
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
from tests.support.hostile_mail import OTHER, body_rules, busy_stranger, waited_s
from tests.support.relay_process import RelayProcess, until

TOP = Path(__file__).resolve().parents[2]
BOUND_MS = 1.0  # for 1,000 rules
WAIT_BOUND_MS = 250.0
WAITS = 40  # messages of the other client
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
    waits_ms = [wait_s * 1000 for wait_s in waited_beside_a_stranger(WAITS)]
    print(
        f"\nbeside a stranger, the 250 for 4 KB: median {statistics.median(waits_ms):.0f} ms,"
        f" at most {max(waits_ms):.0f} ms"
    )
    return int(figures["1,000 of ten kinds"] >= BOUND_MS or max(waits_ms) > WAIT_BOUND_MS)


def waited_beside_a_stranger(count: int) -> list[float]:
    """Return the seconds from the final dot of each message to its reply."""
    with (
        RelayProcess(policies={"10-body.toml": body_rules(50)}) as relay,
        busy_stranger(relay) as busy,
        relay.smtp(source=OTHER) as client,
    ):
        until("the stranger has mail accepted", lambda: busy.waits_s or busy.faults)
        content = CONTENT.decode()
        waits_s = [waited_s(client, "ann@customer.example", content) for _ in range(count)]
        assert not busy.faults, busy.faults
        return waits_s


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
