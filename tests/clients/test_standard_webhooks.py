"""Standard Webhooks' own library for Python verifies what Relay posts."""

import pytest

from tests.support.relay_process import RelayProcess
from tests.support.webhooks import KEY, WebhookReceiver, hook

standardwebhooks = pytest.importorskip("standardwebhooks")


def test_verified() -> None:
    with WebhookReceiver() as receiver, RelayProcess(config={"webhook": [hook(receiver)]}) as relay:
        relay.send_mail(to=["bob@example.test", "nobody@example.test"], subject="Grüße")
        receiver.until(lambda found: {one["step"] for one in found} == {1, 2, 3, 4, 5, 6, 7})
        assert relay.cli("webhook", "test").returncode == 0
        verifier = standardwebhooks.Webhook(KEY)
        for _, header, body in receiver.requests:
            assert verifier.verify(body, header)["cursor"]
            with pytest.raises(standardwebhooks.WebhookVerificationError):
                verifier.verify(body + b" ", header)
        assert receiver.events[-1]["name"] == "test"
