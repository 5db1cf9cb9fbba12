"""One sender of hostile mail does not delay the mail of others while rules read it."""

import smtplib
import statistics
import threading
import time

from tests.support.in_thread import in_threads
from tests.support.relay_process import RelayProcess, until

GATE = True

STRANGER, OTHER = "127.0.0.2", "127.0.0.3"
CONNECTIONS = 4
CONTENT = "Subject: hello\r\n\r\n" + "Some words of a usual message.\r\n" * 130
_HTML = (
    "<div><p title='a>b'>free&nbsp;m&#111;ney &amp&lt;<!-- a<b --><span style='x'>a&zwnj;b</span>"
    'aaaaab aaaab <b>in<i>vo</i>ice</b> &notanentity; <![CDATA[x]]> <a href="http://x/?a=b&c">\r\n'
)
HOSTILE = "MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n" + _HTML * 700  # 128 KiB
KINDS = ("words = 'order {} paid'", "pattern = 'order[ -]+{}[a-f]{{2,8}} (is|was) +paid'")
RULES = "".join(
    f"[[rule]]\nname = 'text {number}'\nwhen = {{ body = {{ {KINDS[number % 2].format(number)} }} }}\n"
    "then = [ { bcc = 'bob@example.test' } ]\n"
    for number in range(50)
)


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


def test_others_do_not_wait_for_a_stranger_who_keeps_the_rules_busy(serve) -> None:
    relay: RelayProcess = serve(policies={"10-body.toml": RULES})
    is_over = threading.Event()
    busy_s: list[float] = []
    faults: list[Exception] = []

    def keep_busy() -> None:
        try:
            with relay.smtp(source=STRANGER) as client:
                while not is_over.is_set():
                    busy_s.append(waited_s(client, "x@far.test", HOSTILE))
        except (OSError, AssertionError, smtplib.SMTPException) as error:
            faults.append(error)

    busy = in_threads([keep_busy] * CONNECTIONS, over=is_over)
    with busy, relay.smtp(source=OTHER) as client:
        until("the stranger has mail accepted", lambda: busy_s or faults)
        waits_s = [waited_s(client, "ann@other.test", CONTENT) for _ in range(8)]
    assert faults == []
    assert statistics.median(waits_s) < statistics.median(busy_s) / 3
    accepted = relay.metric("relay_messages_accepted_total", via="smtp")
    assert accepted == len(waits_s) + len(busy_s)
