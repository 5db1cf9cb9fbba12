"""Find the end of a message's content in what the client sends, and undo the framing's encoding.

A framing takes octets as they arrive, cut anywhere, and returns the octets of the content. It does
not check or keep the content: ContentCollector (data.py) does, in the same way for every framing.
SmtpSession chooses the framing. There is one, that of DATA.

RFC 5321 2.3.8, 4.1.1.4, 4.5.2 (transparency).
"""

_CRLF = b"\r\n"
_DOT = b"\r\n."
_END = _DOT + _CRLF


class DotFraming:
    """The framing of DATA: only CRLF.CRLF ends it (SMTP smuggling), dots after CRLF are doubled.

    Whole blocks are processed, never single lines. The last octets of a block are kept for the next
    one if the end of data may begin there. Data starts as if after a CRLF, so that the first line
    is like every other.
    """

    def __init__(self) -> None:
        self._rest = _CRLF
        self._skipped = len(_CRLF)  # octets of `rest` that the client did not send

    def take(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Return the content in `octets`, and what follows its end, or None before the end.

        No content that is returned ends between CR and LF.
        """
        data = self._rest + octets
        # One search finds both the end of data and doubled dots.
        dot = data.find(_DOT)
        end = data.find(_END, dot) if dot >= 0 else -1
        cut = end + len(_CRLF) if end >= 0 else len(data) - _end_begun(data)
        if 0 <= dot < (end if end >= 0 else cut):
            content = data[:cut].replace(_DOT, _CRLF)[self._skipped :]
        else:
            content = data[self._skipped : cut]
        if end >= 0:
            return content, data[end + len(_END) :]
        if cut:
            self._skipped = 0
        self._rest = data[cut:]
        return content, None


def _end_begun(data: bytes) -> int:
    """Return how many octets at the end of `data` may begin the end of data."""
    for size in range(len(_END) - 1, 0, -1):
        if data.endswith(_END[:size]):
            return size
    return 0
