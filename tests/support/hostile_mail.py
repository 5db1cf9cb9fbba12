"""A stranger who keeps the rules busy: 1 MiB of hostile html after another, on several connections."""

import smtplib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.relay_process import RelayProcess

STRANGER, OTHER = "127.0.0.2", "127.0.0.3"
CONNECTIONS = 4
_HOSTILE_OCTETS = 1024 * 1024
_HTML = (
    "<div><p title='a>b'>free&nbsp;m&#111;ney &amp&lt;<!-- a<b --><span style='x'>a&zwnj;b</span>"
    'aaaaab aaaab <b>in<i>vo</i>ice</b> &notanentity; <![CDATA[x]]> <a href="http://x/?a=b&c">'
)


class Busy:
    """What the stranger sees: the seconds from each final dot to its reply."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []
        self.faults: list[Exception] = []
        self.stopped = threading.Event()

    def send(self, relay: RelayProcess) -> None:
        """Send until it is stopped, or something fails."""
        body = (_HTML * (_HOSTILE_OCTETS // len(_HTML) + 1))[:_HOSTILE_OCTETS]
        lines = "\r\n".join(body[start : start + 900] for start in range(0, len(body), 900))
        content = f"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n{lines}\r\n"
        try:
            with relay.smtp(source=STRANGER) as client:
                while not self.stopped.is_set():
                    self.waits_s.append(waited_s(client, "x@far.test", content))
        except (OSError, AssertionError, smtplib.SMTPException) as error:
            self.faults.append(error)


def waited_s(client: smtplib.SMTP, sender: str, content: str) -> float:
    """Send a message to alice, and return how long its reply took after the final dot."""
    client.ehlo_or_helo_if_needed()
    for reply in (client.mail(sender), client.rcpt("alice@example.test"), client.docmd("DATA")):
        assert reply[0] in (250, 354), reply
    client.send(content.encode())
    start_s = time.monotonic()
    client.send(b".\r\n")
    code, text = client.getreply()
    assert code == 250, text
    return time.monotonic() - start_s


@contextmanager
def busy_stranger(relay: RelayProcess) -> Iterator[Busy]:
    """Have the stranger send while the block runs."""
    busy = Busy()
    threads = [threading.Thread(target=busy.send, args=(relay,)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        yield busy
    finally:
        busy.stopped.set()
        for thread in threads:
            thread.join()


def body_rules(count: int) -> str:
    """Return so many rules on the text of a message, every second with a regular expression."""
    kinds = ("words = 'order {} paid'", "pattern = 'order[ -]+{}[a-f]{{2,8}} (is|was) +paid'")
    return "".join(
        f"[[rule]]\nname = 'text {number}'\n"
        f"when = {{ body = {{ {kinds[number % 2].format(number)} }} }}\n"
        "then = [ { bcc = 'bob@example.test' } ]\n"
        for number in range(count)
    )
