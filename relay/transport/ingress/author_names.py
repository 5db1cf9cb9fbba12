"""The addresses that every program reads in From and Sender. RFC 5322 3.6.2."""

from typing import Self

from msgspec import Struct

from relay.base.message.header import Header
from relay.transport.checks.dmarc import authors_of


class AuthorNames(Struct, frozen=True):
    """The names in the fields From and Sender of a message."""

    addresses: tuple[str, ...]  # in lower case with A-labels
    is_unclear: bool  # programs may read others
    has_author: bool  # From has an address; some hosts write their own in place of none

    @classmethod
    def of(cls, header: Header) -> Self:
        """Return the names in a header."""
        fields = [field for field in header.fields if field[0] in (b"from", b"sender")]
        read = [(name, authors_of(name, octets)) for name, octets in fields]
        addresses = [address for _, found in read for address in found or ()]
        is_repeated = len({name for name, _ in fields}) < len(fields)
        is_encoded = any("=?" in address for address in addresses)  # some programs decode it
        return cls(
            tuple(addresses),
            is_unclear=is_repeated or is_encoded or any(found is None for _, found in read),
            has_author=any(name == b"from" and found for name, found in read),
        )
