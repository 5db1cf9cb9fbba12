"""What the log says about mail, in both forms that a service writes."""

import pytest

from relay.operation.commands.logged_mail import read_log

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
    senders, results = read_log(text.splitlines())
    assert senders == {"q1": "a@x.test"}
    assert results == {"q1": {"b@x.test": "relayed", "c@x.test": "deferred"}}
