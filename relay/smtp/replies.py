"""Bytes of a peer into replies, wherever the network cut them.

On the path: wire feeds it what the socket gave.
Holds: sans-I/O; at most 8 KiB and 100 lines of a reply are kept; a reply's text is printable.
Fails: never; what is no reply becomes `fault`, and nothing behind it is read.
Standards: RFC 5321 4.2, 4.2.1, 4.5.3.1.5.
"""

from relay.message.classify import Reply

REPLY_BYTES_MAX = 8 * 1024
REPLY_LINES_MAX = 100
_TOO_LONG = f"a reply of more than {REPLY_LINES_MAX} lines or {REPLY_BYTES_MAX} bytes"
_SHOWN_MAX = 80


class ReplyReader:
    """Takes bytes in, gives whole replies out; `fault` says what was wrong, "" if nothing."""

    def __init__(self) -> None:
        self.fault = ""
        self._rest = b""
        self._texts: list[str] = []
        self._size_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a next reply has come yet."""
        return not self._rest and not self._texts

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes, in order, up to the first fault."""
        replies: list[Reply] = []
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            reply = self._take(line.removesuffix(b"\r"))
            if self.fault:
                return replies
            if reply is not None:
                replies.append(reply)
        if self._size_bytes + len(self._rest) > REPLY_BYTES_MAX:
            self.fault = _TOO_LONG
        return replies

    def _take(self, line: bytes) -> Reply | None:
        code, separator = line[:3], line[3:4]
        if not (code.isdigit() and b"200" <= code < b"600" and separator in (b"", b" ", b"-")):
            self.fault = f"{printable(line[:_SHOWN_MAX])!r}, which is no SMTP reply"
            return None
        self._size_bytes += len(line)
        if self._size_bytes > REPLY_BYTES_MAX or len(self._texts) >= REPLY_LINES_MAX:
            self.fault = _TOO_LONG
            return None
        self._texts.append(printable(line[4:]))
        if separator == b"-":
            return None
        text, self._texts, self._size_bytes = joined(self._texts), [], 0
        return Reply(int(code), text)


def printable(raw: bytes) -> str:
    """Return `raw` as text safe in a report, a log, JSON: what is not printable becomes "?"."""
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def joined(lines: list[str]) -> str:
    """Return a reply's lines as one, without the enhanced status that hosts repeat on each."""
    if len(lines) == 1:
        return lines[0]
    first = lines[0].partition(" ")[0]
    repeated = first + " " if first.count(".") == 2 and first[:1] in "245" else "\n"
    return " ".join([lines[0], *(line.removeprefix(repeated) for line in lines[1:])]).strip()
