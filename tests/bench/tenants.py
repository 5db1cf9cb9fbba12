"""What the rules of 100 tenants cost a message, compared with those of one.

    python -m tests.bench.tenants               1,000 messages with each rule book, in turn

Each tenant has 50 rules: patterns, words of the subject, addresses, names of attachments. A message
is for one recipient, or for five of different tenants where there are so many. Bound: 0.2 ms more
CPU time a message.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from relay.base.message.envelope import Source
from relay.base.message.verdict import ExaminedMessage
from relay.base.settings.tree import Tenant
from relay.transport.policy.rule_book import RuleBook, TenantRules
from relay.transport.policy.rule_files import read_rules
from relay.transport.policy.rule_tests import examined_message

RULES, TENANTS = 50, 100
BOUND_MS = 0.2
CONDITIONS = (
    'subject = "*offer {0}*"',
    'sender = "*@partner{0}.test"',
    'recipient = "person{0}@*"',
    'header = {{ name = "X-Kind", pattern = "^kind{0}$" }}',
    'attachment_name = "*.x{0}"',
)
CONTENT = (
    b"From: a@far.test\r\nTo: b@t0.test\r\nSubject: Our offer 7 of today\r\nX-Kind: kind3\r\n"
    b"Message-ID: <1@far.test>\r\n\r\nHello\r\n"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenants-") as name:
        one, all_of_them = (book(Path(name), number) for number in (1, TENANTS))
    worst = 0.0
    for recipients in (1, 5):
        times: dict[int, list[float]] = {1: [], TENANTS: []}
        in_turn = ((1, one), (TENANTS, all_of_them)) * given.messages
        for tenants, rules in in_turn:
            mail = message(recipients, tenants=tenants)
            began = time.thread_time()
            rules.evaluate(mail)
            times[tenants].append(time.thread_time() - began)
        medians = {tenants: statistics.median(some) * 1000 for tenants, some in times.items()}
        more = medians[TENANTS] - medians[1]
        print(f"{recipients} recipients: {medians[1]:.3f} ms, {medians[TENANTS]:.3f} ms of CPU; "
              f"{more:.3f} more")  # fmt: skip
        worst = max(worst, more if recipients == 1 else 0)
    return int(worst > BOUND_MS)


def book(folder: Path, tenants: int) -> RuleBook:
    made = {}
    for name in (f"t{number}" for number in range(tenants)):
        home = folder / f"of {tenants}" / name
        home.mkdir(parents=True)
        (home / "10.toml").write_text(
            "".join(
                f'[[rule]]\nname = "r{each}"\nwhen = {{ {condition.format(each)} }}\n'
                f'then = [ {{ set_header = {{ name = "X-{each}", value = "1" }} }} ]\n'
                for each, condition in zip(range(RULES), itertools.cycle(CONDITIONS), strict=False)
            )
        )
        tenant = Tenant(name, (f"{name}.test",))
        made[name] = TenantRules(name, frozenset(tenant.domains), read_rules(home, tenant=tenant))
    return RuleBook(tenants=made)


def message(recipients: int, *, tenants: int) -> ExaminedMessage:
    """Return a message of a stranger, of which nothing is known yet."""
    to = [f"b{number}@t{number % tenants}.test" for number in range(recipients)]
    return examined_message(
        "a@far.test", to, CONTENT, source=Source.SMTP,
        local_domains=[f"t{number}.test" for number in range(tenants)],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
