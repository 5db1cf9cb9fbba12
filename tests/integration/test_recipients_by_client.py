"""Each test recipient of the page has a row in tests/support, to which tests/clients sends."""

import re

from relay.development.internet.test_recipients import Manner, find_test_recipient
from tests.support.recipients_by_client import EXPECTED
from tests.support.relay_process import ROOT

PAGE = ROOT / "docs/internet.md"


def test_all_but_the_captured_one_are_test_recipients() -> None:
    others = [one.address for one in EXPECTED if find_test_recipient(one.address) is None]
    assert others == ["ann@customer.example"]


def test_each_recipient_of_the_page_has_a_row() -> None:
    """Apart from a silent host, which costs a time-out in real time at each attempt."""

    def kind(address: str) -> tuple[object, ...]:
        found = find_test_recipient(address)
        assert found is not None, f"{address} is no test recipient"
        return found.manner, found.stage, found.reply, found.times

    section = PAGE.read_text().partition("\n## Test recipients\n")[2].partition("\n## ")[0]
    cells = "\n".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    named = set(re.findall(r"`([^`@]+@[^`@]+)`", cells))
    assert len(named) > 12
    silent = {one for one in named if kind(one)[0] is Manner.STALL}
    sent = {kind(one.address) for one in EXPECTED if find_test_recipient(one.address)}
    assert [one for one in sorted(named - silent) if kind(one) not in sent] == []
