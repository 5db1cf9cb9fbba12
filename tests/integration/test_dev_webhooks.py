"""Webhooks of a development relay: the clock plays the day of repetitions."""

import json

from relay.development.options import WEBHOOK_KEY
from tests.integration.test_dev_subscriptions import HOUR_S, advance
from tests.support import webhooks
from tests.support.dev_process import DevProcess
from tests.support.webhooks import WebhookReceiver


def test_a_day(monkeypatch) -> None:
    monkeypatch.setattr(webhooks, "KEY", WEBHOOK_KEY)
    with WebhookReceiver() as down, WebhookReceiver() as good:
        words = [f"--webhook={down.url()}", f"--webhook={good.url('/other')}"]
        with DevProcess("--no-demo", *words) as relay:
            down.mode = "error"
            relay.submit("a@remote.test", ["alice@example.test"], b"Subject: old\r\n\r\nHi\r\n")
            good.until(lambda found: len(found) == 2)
            down.until(lambda found: found)
            advance(relay, 20 * HOUR_S)
            assert 200 < len(down.requests) < 300  # one each 5 minutes
            relay.submit("a@remote.test", ["bob@example.test"], b"Subject: new\r\n\r\nHi\r\n")
            good.until(lambda found: len(found) == 4)
            advance(relay, 5 * HOUR_S)
            metric = {"kind": "webhook", "result": "dropped"}
            assert relay.metric("relay_notifications_total", **metric) == 2
            down.requests.clear()
            down.mode = "good"
            advance(relay, 600)
            found = down.until(lambda found: len(found) == 2)
            new = relay.journey("last")["id"]
            assert [(one["step"], one["message"]) for one in found] == [(5, new), (6, new)]
            log = json.dumps(relay.log)
            assert log.count("events are dropped after a day") == 1
            assert "Traceback" not in log
