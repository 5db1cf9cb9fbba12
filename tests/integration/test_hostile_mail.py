"""One sender of hostile mail does not delay the mail of others while rules read it."""

import statistics

from tests.support.hostile_mail import OTHER, body_rules, busy_stranger, waited_s
from tests.support.relay_process import until

CONTENT = "Subject: hello\r\n\r\n" + "Some words of a usual message.\r\n" * 130


def test_others_do_not_wait_for_a_stranger_who_keeps_the_rules_busy(serve):
    relay = serve(policies={"10-body.toml": body_rules(50)})
    with busy_stranger(relay) as busy, relay.smtp(source=OTHER) as client:
        until("the stranger has mail accepted", lambda: busy.waits_s or busy.faults)
        waits_s = [waited_s(client, "ann@other.test", CONTENT) for _ in range(20)]
    assert busy.faults == []
    assert statistics.median(waits_s) < statistics.median(busy.waits_s) / 3
    accepted = relay.metric("relay_messages_accepted_total", via="smtp")
    assert accepted == len(waits_s) + len(busy.waits_s)
