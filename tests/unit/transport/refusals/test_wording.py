"""A refusal as a line for people."""

from relay.transport.refusals.refusal import Refusal, RefusalReason, line_of
from tests.support.tables import each_row

APP, ANN = "app@example.test", "ann@customer.example"
LINES = {
    f'refused 550 5.7.1 {APP} -> {ANN} "Setup program" (rule "no executables": No)': {
        "command": "DATA",
        "sender": APP,
        "recipients": (ANN,),
        "recipient_count": 1,
        "subject": "Setup program",
        "reply": "550 5.7.1 No",
        "rule": "no executables",
    },
    f"refused 550 5.1.1 <> -> {ANN}, {ANN}, {ANN} and 12 more (unknown)": {
        "command": "RCPT",
        "recipients": (ANN,) * 10,
        "recipient_count": 15,
        "reply": "550 5.1.1 unknown",
    },
    f"refused 553 5.7.1 {APP} (not yours)": {
        "command": "MAIL",
        "sender": APP,
        "reply": "553 5.7.1 not yours",
    },
    "refused 535 5.7.8 login shop (wrong) 7 times": {
        "command": "AUTH",
        "account": "shop",
        "client": "192.0.2.1",
        "reply": "535 5.7.8 wrong",
        "times": 7,
    },
    "refused STARTTLS from 192.0.2.1 (TLS handshake failed: unknown ca)": {
        "command": "STARTTLS",
        "client": "192.0.2.1",
        "reply": "TLS handshake failed: unknown ca",
    },
    "refused 501 HELO from 192.0.2.1 (Syntax: HELO your.host.name)": {
        "command": "HELO",
        "client": "192.0.2.1",
        "reply": "501 Syntax: HELO your.host.name",
    },
    "refused 500 5.5.2 from 192.0.2.1 (Unknown command)": {
        "client": "192.0.2.1",
        "reply": "500 5.5.2 Unknown command",
    },
    "refused 9 times": {"times": 9},
}


@each_row("line, facts", LINES.items())
def test_a_refusal_is_one_line(line, facts):
    assert line_of(Refusal(at="", reason=RefusalReason.SYNTAX, **facts)) == line
