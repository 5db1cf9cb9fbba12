"""What the log says about mail, in both forms that a service writes."""

from functools import partial

import pytest

from relay.operation.commands.logged_mail import read_log, what_became

JSON = b"""\
{"event":"accepted","qid":"q1","sender":"a@x.test","recipients":2}
{"event":"recipient","qid":"q1","to":"b@x.test","status":"relayed","reply":"250 event=accepted qid=q2"}
{"event":"recipient","qid":"q1","to":"b@x.test","status":"deferred","reply":"\\" event=accepted qid=q2"}
{"event":"recipient","qid":"q1","to":"c@x.test","status":"deferred","reply":"open
"""
LOGFMT = b"""\
room=ingress event=accepted qid=q1 sender=a@x.test recipients=2
event=recipient qid=q1 to=b@x.test status=relayed reply="250 event=accepted qid=q2"
event=recipient qid=q1 to=b@x.test status=deferred reply="\\" event=accepted qid=q2"
event=recipient qid=q1 to=c@x.test status=deferred reply="open
"""


@pytest.mark.parametrize("text", [JSON, LOGFMT])
def test_what_has_left_stays_so(text: bytes) -> None:
    accepted, results = read_log(text.splitlines())
    assert accepted == {"q1": ("a@x.test", 2)}
    assert results == {"q1": {"b@x.test": "relayed", "c@x.test": "deferred"}}


def test_who_has_no_result_is_named() -> None:
    became = partial(what_became, {"B@x": "relayed"})
    assert became(named=["an-alias@x"], number=1) == "relayed B@x"
    assert became(named=["b@X", "c@x"], number=2) == "relayed B@x, no result c@x"
    assert became(named=[], number=3) == "relayed B@x, no result of 2"  # by SMTP
