"""RFC 3461: which reports a sender gets, with Postfix as a next hop that offers DSN, and as one that does not."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.postfix import NoPostfixError, Postfix
from tests.support.relay_process import until
from tests.support.reports import reports_of

NOTIFY = ("", "NEVER", "SUCCESS", "FAILURE", "DELAY", "SUCCESS,FAILURE", "SUCCESS,FAILURE,DELAY")


@pytest.fixture
def plain() -> Iterator[Postfix]:
    """A host of plain.test, where dora lives, that does not offer DSN."""
    try:
        settings = {"smtpd_discard_ehlo_keywords": "dsn"}
        with Postfix(domain="plain.test", people=["dora"], settings=settings) as started:
            yield started
    except NoPostfixError as why:
        pytest.skip(str(why))


def expected(notify: str) -> Counter[tuple[str, str]]:
    """Of whom Relay itself reports what."""
    asked = notify.split(",") if notify else ["FAILURE"]
    reports = [
        ("SUCCESS", "delivered", "bob@example.test"),
        ("SUCCESS", "relayed", "dora@plain.test"),  # of carol@post.test, Postfix reports
        ("FAILURE", "failed", "nobody@post.test"),
        ("FAILURE", "failed", "nobody@plain.test"),
    ]
    return Counter((action, address) for when, action, address in reports if when in asked)


def test_each_notify_and_outcome_is_reported_as_rfc_3461_says(postfix, plain, serve) -> None:
    people = [
        "bob@example.test",
        "carol@post.test",
        "nobody@post.test",
        "dora@plain.test",
        "nobody@plain.test",
    ]
    routes = [
        {"domain": domain, "next_hop": f"smtp://127.0.0.1:{host.port}"}
        for domain, host in (("post.test", postfix), ("plain.test", plain))
    ]
    relay = serve(config={"route": routes})
    ids = []
    for sender in ("alice@example.test", ""):
        for notify in NOTIFY:
            content = f"Subject: [{notify}]\r\n\r\nHello.\r\n".encode()
            options = [f"NOTIFY={notify}"] if notify else []
            ids.append(relay.submit(sender, people, content, rcpt_options=options))
    for queue_id in ids:
        journey = relay.until_final(queue_id)
        states = {one["address"]: one["state"] for one in journey["recipients"]}
        assert list(states.values()) == ["delivered", "relayed", "failed", "relayed", "failed"]
    by_kind = {"failure": 0.0, "delivered": 0.0, "relayed": 0.0}
    for notify in NOTIFY:
        for action, _ in expected(notify):
            by_kind["failure" if action == "failed" else action] += 1
    for kind, count in by_kind.items():
        assert relay.metric("relay_reports_total", kind=kind) == count
    for queue_id in ids:  # what was sent is in the journey, and in the Inbox
        for step in relay.journey(queue_id)["steps"]:
            if step["step"] == 7:
                relay.until_final(step["detail"]["report_id"])
    found: dict[str, Counter[tuple[str, str]]] = {}
    for report in reports_of(relay):
        about = found.setdefault(str(report.message["subject"]).partition(": ")[2], Counter())
        about.update((one["action"], one_is) for one_is, one in report.recipients.items())
    assert found == {f"[{notify}]": expected(notify) for notify in NOTIFY if expected(notify)}
    # Postfix was asked by Relay for the reports that Relay does not make
    asked = [notify for notify in NOTIFY if "SUCCESS" in notify]
    until(
        "Postfix reports",
        lambda: postfix.log.count("sender delivery status notification") >= len(asked),
    )
    assert "notification" not in plain.log
