"""A JSON body of the largest size: memory use and complete delivery."""

import base64
import hashlib
import json
import random
from pathlib import Path

from tests.support.graph_client import people
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

FILE_BYTES = 25_000_000
TIMES_THE_BODY_MAX = 5


def memory_bytes(relay: RelayProcess, what: str) -> int:
    """What the relay's process has in memory: VmRSS now, VmHWM at most since it was reset."""
    assert relay.process is not None
    reported = Path(f"/proc/{relay.process.pid}/status").read_text()
    return 1024 * int(reported.partition(f"{what}:")[2].split()[0])


def forget_the_most(relay: RelayProcess) -> None:
    assert relay.process is not None
    Path(f"/proc/{relay.process.pid}/clear_refs").write_text("5")


def test_memory_for_the_largest_json_body_is_bounded(remotes: Remotes, serve) -> None:
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
    idle_bytes = memory_bytes(relay, "VmRSS")
    grown = {}

    def measured(step: str) -> None:
        grown[step] = round((memory_bytes(relay, "VmHWM") - idle_bytes) / len(body), 1)
        forget_the_most(relay)

    forget_the_most(relay)
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
