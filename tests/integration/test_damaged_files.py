"""One octet of a text is damaged in each of the small files that Relay writes and reads."""

import contextlib
import re
import sqlite3

from tests.support.relay_process import RelayProcess, message

LAST_TEXT = re.compile(rb'(?s)(.*": ?")[^"]')


def test_a_start_and_what_follows_go_on() -> None:
    mail, keyed = {"message": message(to=["bob@example.test"])}, {"Idempotency-Key": "order-1"}
    with RelayProcess() as relay:
        sent = relay.graph("POST", "/me/sendMail", mail, headers=keyed)
        relay.until_final(sent.headers["x-relay-message-id"])
        draft = relay.graph("POST", "/me/messages", {"subject": "large"}).json()["id"]
        item = {"attachmentType": "file", "name": "a.bin", "size": 4_000_000}
        path = f"/me/messages/{draft}/attachments/createUploadSession"
        assert relay.graph("POST", path, {"AttachmentItem": item}).status == 201
        zone = {"timeZone": "W. Europe Standard Time"}
        assert relay.graph("PATCH", "/me/mailboxSettings", zone).status == 200
        relay.stop()

        damaged = set()
        for file in filter(lambda path: path.is_file(), (relay.folder / "mail").rglob("*")):
            if (octets := file.read_bytes()).startswith(b"{"):
                file.write_bytes(LAST_TEXT.sub(rb"\1" + b"\xff", octets))
                damaged.add(file.relative_to(relay.folder / "mail").parts[1])
        assert damaged == {"alice", "clock", "keys", "log", "uploads"}
        stored = relay.folder / "mail/.submissions/subscriptions"
        with contextlib.closing(sqlite3.connect(stored, isolation_level=None)) as rows:
            rows.execute("INSERT INTO subscription VALUES ('x', ?)", [b"\x81\xa2id\xa1\xff"])

        relay.start()
        assert relay.graph("POST", "/me/sendMail", mail, headers=keyed).status == 503
        relay.until_final(relay.send_mail(to=["bob@example.test"]))
        assert relay.graph("GET", "/me/mailboxSettings").json()["timeZone"] == "UTC"
        faults = ("damaged record of an Idempotency-Key", "subscriptions are lost")
        assert sorted(re.findall("|".join(faults), "".join(relay.faults()))) == [*faults]
