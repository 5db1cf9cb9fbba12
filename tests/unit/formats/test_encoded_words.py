"""Encoded words of many mail programs, and hostile ones."""

from relay.formats.encoded_words import decode_words
from tests.support.tables import each_row


@each_row(
    "value, text",
    [
        (b"plain", "plain"),
        (b"=?utf-8?q?a_b=C3=A9?=", "a b\xe9"),
        (b"=?utf-8?b?w6k=?=", "\xe9"),
        (b"=?utf-8?q?a?= =?utf-8?q?b?= c", "ab c"),
        (b"=?utf-8?q?a?==?utf-8?q?b?=", "ab"),
        (b"=?utf-8?Q?How_are_you??=", "How are you?"),
        (b"=?utf-8?q?a?b?=", "a?b"),
        (b"=?utf-8?b??=", ""),
        (b"=?a?q?x =?utf-8?q?y?=", "=?a?q?x y"),
        (b"=?utf-8?b?w6k?=", "\xe9"),
        (b"=?utf-8?q?v=2?= =?utf-8?Q?Ebat?=", "v.bat"),
        (b"=?utf-8?q?=C3?= =?utf-8?b?qQ?=", "\xe9"),
        (b"=?utf-8?b?di5iY?= =?utf-8?B?XQ=?=", "v.bat"),
        (b"=?utf-8?q?=C?= =?us-ascii?q?3?=", "=C3"),
        # raw octets in a word are in its charset, others in that of the text around it
        (b"=?iso-8859-2?Q?Die_Fr\xf6=B3che?=", "Die Frö\u0142che"),
        (b"=?utf-8?b?w6\xffk=?=", "\xe9"),
        (b"\xc3\xb6 =?koi8-r?q?\xf6?= \xc3\xb6 =?utf-8?q?\xc3=B6?=", "ö \u0416 ö ö"),
    ],
)
def test_encoded_words_are_decoded(value, text):
    assert decode_words(value) == text
