"""The addresses that readers may find in From and Sender, however these are written.

Where readers may see other addresses than those that are read here, each @ of the fields is
searched. RFC 5322 3.6.2; RFC 3490, RFC 5891 (domains).
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Self
from unicodedata import normalize

from msgspec import Struct

from relay.base.message.envelope import domain_of
from relay.base.message.header import Header
from relay.base.settings.validation import domain_matches
from relay.formats.read_header import ORIGINATORS_OCTETS_MAX, decode_text, originators

_DOMAIN = re.compile(r"@\s*([^\s!-,/:-@\[-^`{-\x7f]+)")  # no ASCII but letters, digits, "-._"
_WORD = re.compile(r"[^\s<>(),;:@\[\]]+")
_UNQUOTED = {ord('"'): None, ord("\\"): None}
_JOINERS = re.compile("[\u200c\u200d]")  # IDNA 2003 drops them
_LONG_LABEL = re.compile(r"[^.]{64}")  # readers may leave out some of it; to encode it takes long


class AuthorNames(Struct, frozen=True):
    """The names in the fields From and Sender of a message."""

    addresses: tuple[str, ...] = ()  # that are read without doubt
    text: str = ""  # in which readers may find more; "": in none
    is_unread: bool = False  # they are too long: any name may be in them
    has_author: bool = True  # From has an address; some hosts write their own in place of none

    @classmethod
    def of(cls, header: Header) -> Self:
        """Return the names in a header."""
        fields = Header(
            tuple([field for field in header.fields if field[0] in (b"from", b"sender")])
        )
        if sum(len(octets) for _, octets in fields.fields) > ORIGINATORS_OCTETS_MAX:
            return cls(is_unread=True)
        author_fields = list(originators(fields))
        addresses = [author.address for field in author_fields for author in field.addresses]
        text, has_words = "", any("=?" in address for address in addresses)  # some decode them
        if has_words or any(field.unread or not field.addresses for field in author_fields):
            values = (*fields.values("From"), *fields.values("Sender"))
            text = " ".join(decode_text(value.decode("utf-8", "replace")) for value in values)
        domains = _DOMAIN.findall(" ".join((*addresses, text)))
        return cls(
            tuple(addresses),
            text,
            is_unread=any(map(_LONG_LABEL.search, domains)),
            has_author=any(field.name == "From" and field.addresses for field in author_fields),
        )

    def has_domain(self, is_meant: Callable[[str], bool]) -> bool:
        """Whether a reader may find a domain that is meant."""
        texts = (*self.addresses, self.text)
        return self.is_unread or any(is_meant(form) for text in texts for form in _forms(text))

    def has(self, pattern: str, but: Collection[str] = ()) -> bool:
        """Whether a reader may find an address that matches `local@domain`, with or without a tag,
        or `*@domains`. Domains in `but` do not count.
        """
        local_part, _, domains = pattern.rpartition("@")

        def is_meant(form: str) -> bool:
            return form not in but and domain_matches(domains, form)

        named = [
            text
            for text in (self.text, *self.addresses)
            if local_part == "*" or local_part in _words(text)
        ]
        return AuthorNames(tuple(named), is_unread=self.is_unread).has_domain(is_meant)


def _words(text: str) -> Iterator[str]:
    """Yield what may be a local part in a text, with and without its tag."""
    for found in _WORD.findall(text.translate(_UNQUOTED).lower()):
        word = found.strip("'")
        yield from (word, word.partition("+")[0])


def _forms(text: str) -> Iterator[str]:
    """Yield each domain in a text with A-labels: by IDNA 2008, by IDNA 2003 (which writes "ss" for
    the sharp s), and with each label encoded as it is.
    """
    for found in _DOMAIN.findall(text):
        domain = normalize("NFKC", found).replace("\u3002", ".").rstrip(".")  # RFC 3490 3.1
        yield domain_of(f"@{domain}")
        domain = domain.lower()
        yield domain_of(f"@{_JOINERS.sub('', domain.casefold())}")
        labels = [
            label if label.isascii() else f"xn--{label.encode('punycode').decode()}"
            for label in domain.split(".")
        ]
        yield ".".join(labels)
