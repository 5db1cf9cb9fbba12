"""What the log says about mail, in both forms that a service writes."""

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


@pytest.mark.parametrize(
    ("named", "number", "became"),
    [
        ((), 0, "relayed B@x.test"),
        (("list@x.test",), 1, "relayed B@x.test"),  # it was an alias
        (("b@X.test", "c@x.test"), 2, "relayed B@x.test, no result c@x.test"),
        ((), 3, "relayed B@x.test, no result of 2"),  # by SMTP
    ],
)
def test_who_has_no_result_is_named(named: tuple[str, ...], number: int, became: str) -> None:
    assert what_became({"B@x.test": "relayed"}, named=named, number=number) == became
