"""A message as a draft of Graph: its JSON and files, or the shape that is not converted."""

import json

from relay.formats.graph_draft import graph_draft

ANN, BOB = "ann@a.test", "bob@b.test"
MESSAGE = """\
From: =?utf-8?q?J=C3=BCrgen?= <j@a.test>
Sender: boss@a.test
Reply-To: r@r.test
To: Bob <bob@b.test>, carl@c.test
Subject: =?utf-8?b?R3LDvMOfZQ==?= and
 more
Date: Mon, 2 Jan 2006 15:04:05 -0700
Message-ID: <x@a.test>
Importance: High
References: <a@a.test> <b@a.test>
In-Reply-To: <b@a.test>
X-Mailer: =?utf-8?q?=C3=BC?=
List-Id: l.a.test
Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner

text
--inner
Content-Type: multipart/related; boundary=third

--third
Content-Type: text/html; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Gr=FC=DFe<img src="cid:c1">
--third
Content-Type: image/png
Content-ID: c1
Content-Location: a.png
Content-Transfer-Encoding: base64

AAEC
--third--
--inner--
--outer
Content-Type: application/pdf
Content-Disposition: inline; filename*0*=utf-8''%C3%9C; filename*1=b.pdf
Content-ID: <c2>
Content-Transfer-Encoding: base64

AAECAw==
--outer
Content-Type: message/rfc822

Subject: inner

x
--outer
Content-Type: text/plain; name=a.txt
Content-Transfer-Encoding: 8bit

ü
--outer--
"""


def test_a_draft_has_the_message_and_its_files():
    draft = graph_draft(
        MESSAGE.replace("\n", "\r\n").encode(), [BOB, ANN], message_id="<n@r.test>", signed=False
    )
    message = json.loads(draft.message)
    people = {
        name: [(one["emailAddress"]["name"], one["emailAddress"]["address"]) for one in value]
        for name, value in (
            (name, value if isinstance(value, list) else [value]) for name, value in message.items()
        )
        if isinstance(value[0], dict) and "emailAddress" in value[0]
    }
    assert people == {
        "from": [("Jürgen", "j@a.test")],
        "sender": [("", "boss@a.test")],
        "replyTo": [("", "r@r.test")],
        "toRecipients": [("Bob", BOB)],
        "bccRecipients": [("", ANN)],
    }
    assert {name: value for name, value in message.items() if name not in people} == {
        "subject": "Grüße and more",
        "body": {"contentType": "html", "content": 'Grüße<img src="cid:c1">'},
        "importance": "high",
        "internetMessageId": "<n@r.test>",
        "internetMessageHeaders": [{"name": "X-Mailer", "value": "ü"}],
        "singleValueExtendedProperties": [
            {"id": "String 0x1042", "value": "<b@a.test>"},
            {"id": "String 0x1039", "value": "<a@a.test> <b@a.test>"},
        ],
    }
    files = [(one.name, one.content_id, one.size, [*one.blocks(3)]) for one in draft.files]
    assert files == [
        ("attachment.png", "c1", 3, [b"\0\1\2"]),
        ("Üb.pdf", "", 4, [b"\0\1\2", b"\3"]),  # the HTML does not show it
        ("inner.eml", "", 19, [b"Sub", b"jec", b"t: ", b"inn", b"er\r", b"\n\r\n", b"x"]),
        ("a.txt", "", 2, ["ü".encode()]),
    ]
    assert draft.left_out == ("carl@c.test",)
    assert draft.not_carried == ("Date", "List-Id", "Content-Location", "the text beside the HTML")
