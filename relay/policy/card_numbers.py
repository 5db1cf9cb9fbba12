"""Find the numbers of payment cards in a text.

A number has 13 to 19 digits, alone or in groups of at least three, with a blank or hyphen between
them. It has the first digits and the length that an issuer of cards gives, and the check digit of
ISO/IEC 7812-1 (Luhn). A group of digits that is part of a longer one, of a word or of a decimal
fraction is none of its groups.

Takes linear time: a group is compared with at most five before it.
"""

import re
from collections.abc import Iterator

# Lookarounds, so that no place of the text is looked at twice.
_GROUP = re.compile(r"(?<![^\W_])(?<!\+)(?<![0-9]\.)[0-9]{3,19}+(?![^\W_])(?!\.[0-9])")
_BETWEEN_GROUPS = " -\u2010\u2013"  # \u2010 is what NFKC makes of a hyphen that does not break
_GROUPS_MAX = 6  # of three digits
_DIGITS_MAX = 19
_ISSUED = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # MC
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11}"  # Diners Club
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12}"  # JCB
    r"|(?:5[06-8]|6[0-9])[0-9]{11,17}"  # Maestro, Discover, UnionPay and others
)
_DOUBLED = bytes.maketrans(b"0123456789", bytes([0, 2, 4, 6, 8, 1, 3, 5, 7, 9]))
_ZERO = ord("0")


def card_numbers(text: str) -> Iterator[str]:
    """Yield the digits of each number, in the order of the text."""
    groups: list[str] = []
    end = -1
    for found in _GROUP.finditer(text):
        if found.start() != end + 1 or text[end] not in _BETWEEN_GROUPS:
            groups.clear()
        groups = [*groups[1 - _GROUPS_MAX :], found[0]]
        end = found.end()
        digits = ""
        for group in reversed(groups):
            digits = group + digits
            if len(digits) > _DIGITS_MAX:
                break
            if _ISSUED.fullmatch(digits) and _has_check_digit(digits):
                yield digits
                groups.clear()
                break


def masked(digits: str) -> str:
    """Return a number as it may be shown: its last four digits."""
    return f"•••• {digits[-4:]}"


def _has_check_digit(digits: str) -> bool:
    octets = digits.encode()
    single, doubled = octets[::-2], octets[-2::-2]
    return (sum(single) - _ZERO * len(single) + sum(doubled.translate(_DOUBLED))) % 10 == 0
