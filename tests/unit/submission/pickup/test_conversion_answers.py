"""What the process that converts answers arrives whole, whatever is in the message."""

from pathlib import Path

import pytest

from relay.base.child_process import LENGTH_BYTES, framed
from relay.base.files import FileOctets
from relay.base.message.content import LARGE_BYTES, LargeContent, read_all
from relay.formats.convert import convert
from relay.submission.pickup.conversion_child import ConversionAnswer, read_answer

HEAD = b"From: \xe4 <alice@example.test>\r\nTo: b@y.test\r\nSubject: \xff =?utf-16?b?2AA=?=\r\n"
ENCODED = b"Content-Transfer-Encoding: %b\r\n"
BODIES = {
    "clean": (b"", b"x" * 70 + b"\r\n"),
    "bare line ends": (b"", b"x" * 70 + b"\n"),
    "long lines": (b"", b"y" * 2000 + b"\r\n"),
    "8 bit": (b"", b"\xff" * 2000 + b"\n"),
    "base64": (ENCODED % b"base64", b"QUJD" * 500 + b"\r\n"),
    "quoted-printable": (ENCODED % b"quoted-printable", b"=41" * 500 + b"\n"),
}


@pytest.mark.parametrize(("field", "line"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("size", [1, LARGE_BYTES + 1])
def test_a_converted_message_arrives_whole(
    tmp_path: Path, field: bytes, line: bytes, size: int
) -> None:
    file = tmp_path / "a file \udcff"
    file.write_bytes(HEAD + field + b"\r\n" + line * -(-size // len(line)))
    stored = FileOctets(file, 0, file.stat().st_size)
    answer = ConversionAnswer(convert(stored, now_us=0, hostname="h"))
    arrived = read_answer(framed(answer)[LENGTH_BYTES:])
    assert arrived == answer
    assert isinstance(arrived.made.content, LargeContent) is (stored.size > LARGE_BYTES)
    assert read_all(arrived.made.content) == read_all(answer.made.content)
