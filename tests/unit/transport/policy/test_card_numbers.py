"""Numbers of payment cards in the text of a message: which are found, and that none is shown."""

import time

from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.envelope import Source
from relay.transport.policy.body_text import BODY_OCTETS_MAX
from relay.transport.policy.content_conditions import card_numbers
from relay.transport.policy.explanation import explain
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_tests import examined_message
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import rule

CARDS = rule("{ hold = 'x' }", when="{ body = { cards = true } }")
VISA = "4111111111111111"


@each_row(
    "text, found",
    [
        # numbers that issuers publish for tests
        (VISA, [VISA]),
        ("4222222222222", ["4222222222222"]),
        ("5555 5555 5555 4444", ["5555555555554444"]),
        ("2223-0031-2200-3222", ["2223003122003222"]),
        ("3782 822463 10005", ["378282246310005"]),
        ("3056 930902 5904", ["30569309025904"]),
        ("6759 6498 2643 8453", ["6759649826438453"]),
        ("6205 5000 0000 0000 004", ["6205500000000000004"]),
        # where they stand
        (f"Card:{VISA}.", [VISA]),
        ("4111 1111 1111 1111 12/28 123", [VISA]),
        ("order 1234 4111-1111-1111-1111", [VISA]),
        ("4111 1111 1111 1111 5555 5555 5555 4444", [VISA, "5555555555554444"]),
        ("4111\u20101111\u20131111-1111", [VISA]),
        # what is none
        ("4111111111111112", []),
        ("4111 1111 1111 1112", []),
        (f"0{VISA}", []),
        (f"{VISA}0", []),
        (f"{VISA}00000", []),
        (f"x{VISA}", []),
        (f"_{VISA}", [VISA]),
        ("4111  1111 1111 1111", []),
        ("41 11 11 11 11 11 11 11", []),
        (f"0.{VISA}", []),
        (f"{VISA}.5", []),
        ("+4111111111111111", []),
        ("1111 1111 1111 1117", []),  # no issuer, though the check digit fits
        ("9111 1111 1111 1110", []),
        ("٤111 1111 1111 1111", []),
        ("2014 2015 2016 2018", []),
        ("DE89 3704 0044 0532 0130 00", []),
        ("+49 30 123456 789012", []),
        ("", []),
    ],
)
def test_numbers(text, found):
    assert list(card_numbers(text)) == found


def check_digit(digits):
    total = sum(sum(divmod(int(one) * (2 - at % 2), 10)) for at, one in enumerate(digits[::-1]))
    return str(-total % 10)


@given(
    st.text("0123456789", min_size=15, max_size=15),
    st.lists(st.integers(3, 13), max_size=4),
    st.sampled_from(" -"),
    st.sampled_from(["", "to ", "12 ", "a, "]),
)
def test_a_number_is_found_in_any_groups_and_only_with_its_check_digit(rest, sizes, mark, before):
    digits = f"4{rest[1:]}"
    digits += check_digit(digits)
    groups, at = [], 0
    for size in sizes:
        if len(digits) - at - size >= 3:
            groups.append(digits[at : at + size])
            at += size
    text = f"{before}{mark.join([*groups, digits[at:]])}"
    assert list(card_numbers(text)) == [digits] or any(
        each != digits for each in card_numbers(text)
    )
    wrong = f"{digits[:-1]}{(int(digits[-1]) + 1) % 10}"
    assert list(card_numbers(wrong)) == []


@each_row("text", ["411 ", "4 ", "411111111111111111 ", "4", "4-", "4111.1", "+4111 "])
def test_a_long_text_takes_little_time(text):
    long = text * (BODY_OCTETS_MAX // 8 // len(text))
    began = time.process_time()
    list(card_numbers(long))
    assert time.process_time() - began < 0.6  # for an eighth of what rules read in their 10 s


@each_row(
    "body, value",
    [
        ("Charge 4111 1111 1111 1111 now", "•••• 1111"),
        ("Charge 4111\r\n1111 1111\r\n1111 and 5555555555554444", "•••• 1111, •••• 4444"),
        ("Charge \uff14111 1111 \uff11111 1111 now", "•••• 1111"),
        ("Charge 4111&shy;1111<b>1111</b>1111", "•••• 1111"),
        ("Not a card: 4111 1111 1111 1112", None),
    ],
)
def test_neither_a_journey_nor_an_explanation_has_a_number(rules_of, body, value):
    rules = rules_of(CARDS)
    content = f"Content-Type: text/html; charset=utf-8\r\n\r\n<p>{body}</p>\r\n".encode()
    message = examined_message("", ["b@x.test"], content, source=Source.SMTP, local_domains=())
    hits = rules.evaluate(message).hits
    assert [each.because[0].value for each in hits] == ([value] if value else [])
    [finding] = explain(RuleBook(rules), message).rules
    assert (finding.matched, finding.conditions[0].value) == (bool(value), value or "")
