"""A large JSON body: memory use and complete delivery."""

import base64
import hashlib
import json
import random

from tests.support.graph_client import people
from tests.support.relay_process import until
from tests.support.remotes import Remotes, received

FILE_BYTES = 10_000_000
TIMES_THE_BODY_MAX = 5


def test_memory_for_a_large_json_body_is_bounded(remotes: Remotes, serve) -> None:
    octets = random.Random(3).randbytes(FILE_BYTES)
    attachment = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": "large.bin",
        "contentBytes": base64.b64encode(octets).decode(),
    }
    message = {
        "subject": "large",
        "body": {"contentType": "html", "content": "<p>See the file.</p>"},
        "toRecipients": people("x@a.test"),
        "attachments": [attachment],
    }
    expected = hashlib.sha256(octets).digest()
    body = json.dumps({"message": message}).encode()
    good = remotes.start("a.test")
    relay = serve(remotes)
    relay.send_mail(to=["bob@example.test"], subject="small: what is loaded is loaded")
    until("it is sent", lambda: relay.subjects("bob") == ["small: what is loaded is loaded"])
    idle_bytes = relay.memory_bytes(reset=True)
    grown = {}

    def measured(step: str) -> None:
        grown[step] = round((relay.memory_bytes() - idle_bytes) / len(body), 1)
        relay.memory_bytes(reset=True)

    answer = relay.graph("POST", "/me/messages", body=json.dumps(message).encode())
    assert answer.status == 201
    draft = answer.json()
    measured("created")
    answer = relay.graph("PATCH", f"/me/messages/{draft['id']}", {"subject": "changed"})
    assert answer.status == 200
    measured("changed")
    assert relay.graph("POST", f"/me/messages/{draft['id']}/send").status == 202
    relay.until_final(draft["id"])
    measured("sent")
    answer = relay.graph("POST", "/me/sendMail", body=body.replace(b"x@a.test", b"y@a.test"))
    assert answer.status == 202
    relay.until_final(answer.headers["x-relay-message-id"])
    measured("sent at once")
    assert max(grown.values()) < TIMES_THE_BODY_MAX, grown
    print(grown)
    for address in ("x@a.test", "y@a.test"):
        _, _, part = received(good, address).content.partition(b"large.bin")
        coded, _, _ = part.partition(b"\r\n\r\n")[2].partition(b"\r\n--")
        assert hashlib.sha256(base64.b64decode(coded)).digest() == expected
    assert relay.faults() == []
