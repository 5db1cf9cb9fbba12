"""Webhooks of a development relay: the clock plays the day of repetitions."""

import json

from relay.development.options import WEBHOOK_KEY
from tests.support.relay_config import OPERATOR
from tests.support.webhooks import WebhookReceiver

HOUR_S = 3600
OLD = 32  # messages: each of the four lanes of a webhook has some
JSON = {"Authorization": f"Bearer {OPERATOR}", "Content-Type": "application/json"}


def test_a_day(dev) -> None:
    with WebhookReceiver(key=WEBHOOK_KEY) as down, WebhookReceiver(key=WEBHOOK_KEY) as good:
        words = [f"--webhook={down.url()}", f"--webhook={good.url('/other')}"]
        relay = dev("--no-demo", *words)
        for _ in range(OLD):
            content = b"Subject: old\r\n\r\nHi\r\n"
            relay.submit("a@remote.test", ["alice@example.test"], content)
        for one in (good, down):
            one.until(lambda found: len(found) == 2 * OLD)
        down.mode = "error"
        down.requests.clear()
        body = json.dumps({"url": down.url(), "from": "0"}).encode()
        assert relay.request("POST", "/relay/v1/webhooks/replay", body, JSON).status == 200
        down.until(lambda found: found)
        relay.advance(20 * HOUR_S)
        assert 4 * 200 < len(down.requests) < 4 * 300  # one each 5 minutes, of each lane
        relay.submit("a@remote.test", ["bob@example.test"], b"Subject: new\r\n\r\nHi\r\n")
        good.until(lambda found: len(found) == 2 * OLD + 2)
        relay.advance(5 * HOUR_S)
        metric = {"kind": "webhook", "result": "dropped"}
        assert relay.metric("relay_notifications_total", **metric) == 2 * OLD
        down.requests.clear()
        down.mode = "good"
        relay.advance(600)
        found = down.until(lambda found: len(found) == 2)
        new = relay.journey("last")["id"]
        assert [(one["step"], one["message"]) for one in found] == [(5, new), (6, new)]
        log = json.dumps(relay.log)
        assert log.count("events are dropped after a day") == 4
        assert "Traceback" not in log
