"""Make state-schema-N.tar.gz: what a relay of some version leaves on the disk.

    cd CHECKOUT-OF-THAT-VERSION && .venv/bin/python .../tests/golden/make_state.py state-schema-N.tar.gz

The script uses the RelayProcess of the checkout in the current directory. The archive has `mail`,
`state` and `expected.json`, the ids of every message. All paths in it are relative.
"""

import json
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from tests.support.relay_process import RelayProcess, until

YEARS = "3650d"
CONFIG = {
    "delivery": {"retry": ["30d"], "expire_after": YEARS, "delay_warning_after": "3649d"},
    "spool": {"keep": YEARS},
}
SEND_AT = "SystemTime 0x3FEF"  # PidTagDeferredSendTime
FAR_US = int(datetime(2099, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
UPLOAD_BYTES, RECEIVED_BYTES = 400_000, 327_680
NOT_KEPT = ("state/run", "mail/.submissions/lock")
TEXT = "A line of a text that is the same on each line.\n"


def filled(relay: RelayProcess) -> dict[str, object]:
    """Send, hold, defer, schedule and draft messages; return their ids."""
    delivered = relay.send_mail(to=["bob@example.test"], subject="delivered")
    failed = relay.send_mail(to=["nobody@example.test"], subject="failed")
    large = TEXT * 5000  # over 128 KiB: the spool keeps its body in a file
    deferred = relay.send_mail(to=["carol@other.test"], cc=["dave@third.test"],
                               subject="deferred", text=large)  # fmt: skip
    by_smtp = relay.submit("alice@example.test", ["erin@other.test", "frank@other.test"],
                           b"Subject: by SMTP\r\n\r\nHello.\r\n")  # fmt: skip
    held = relay.send_mail(to=["grace@other.test"], subject="held")
    for one in (delivered, failed):
        relay.until_final(one)
    for one in (deferred, by_smtp, held):
        relay.until_state(one, "deferred")
    relay.cli_json("queue", "hold", relay.journey(held)["id"])
    relay.until_state(held, "held")
    scheduled = [
        relay.send_mail(
            to=["bob@example.test"], subject=f"scheduled {number}",
            singleValueExtendedProperties=[{"id": SEND_AT, "value": f"209{number}-01-01T00:00:00Z"}],
        )
        for number in (8, 9)
    ]  # fmt: skip
    return {
        "delivered": delivered,
        "failed": failed,
        "deferred": {deferred: relay.journey(deferred)["id"], by_smtp: by_smtp},
        "held": {held: relay.journey(held)["id"]},
        "scheduled": scheduled,
        "drafts": drafts(relay),
        "upload": upload(relay),
    }


def drafts(relay: RelayProcess) -> dict[str, str]:
    """Make two drafts, one with an attachment; return subject by id."""
    attachment = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "a.txt",
                  "contentBytes": "SGVsbG8="}  # fmt: skip
    made = {}
    for subject, more in (("plain draft", {}), ("with attachment", {"attachments": [attachment]})):
        body = {"subject": subject, "body": {"contentType": "text", "content": "x"}, **more}
        made[relay.graph("POST", "/me/messages", body).json()["id"]] = subject
    return made


def upload(relay: RelayProcess) -> dict[str, object]:
    """Begin an upload session; return its path, and what the server has."""
    draft = relay.graph("POST", "/me/messages", {"subject": "upload"}).json()["id"]
    item = {"attachmentType": "file", "name": "large.bin", "size": UPLOAD_BYTES}
    path = f"/me/messages/{draft}/attachments/createUploadSession"
    url = relay.graph("POST", path, {"AttachmentItem": item}).json()["uploadUrl"]
    path = "/" + url.split("/", 3)[3]
    content_range = f"bytes 0-{RECEIVED_BYTES - 1}/{UPLOAD_BYTES}"
    answer = relay.request("PUT", path, bytes(RECEIVED_BYTES), {"Content-Range": content_range})
    assert answer.status == 200, answer.body
    return {"draft": draft, "path": path, "received": RECEIVED_BYTES, "size": UPLOAD_BYTES}


def main(archive: Path) -> None:
    """Run the relay, stop it and pack what it leaves."""
    with RelayProcess(config=CONFIG) as relay:
        expected = filled(relay)
        until("all is filed", lambda: not relay.pending_submissions())
        relay.stop()
        relay.start(crash_at="request-answered")  # killed before pickup takes the submission
        expected["ready"] = relay.send_mail(to=["bob@example.test"], subject="ready")
        relay.wait_end()
        assert [one.parent.name for one in relay.pending_submissions()] == ["ready"]
        for facts in (relay.folder / "mail/.submissions/uploads").glob("*.json"):
            told = json.loads(facts.read_bytes())  # an upload session ends after a day
            facts.write_text(json.dumps(told | {"expires_us": FAR_US}))
        (relay.folder / "expected.json").write_text(json.dumps(expected, indent=1))
        with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
            for name in ("expected.json", "mail", "state"):
                tar.add(relay.folder / name, name, filter=_kept)


def _kept(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
    one.uid = one.gid = 0
    one.uname = one.gname = ""
    is_cache = Path(one.name).name.startswith("relay-index")  # has absolute paths; made again
    return None if is_cache or one.name.startswith(NOT_KEPT) else one


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
