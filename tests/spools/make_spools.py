"""Make VERSION.ENGINE.tar.gz for each engine: what a relay of a release leaves on the disk.

    cd CHECKOUT-OF-THE-RELEASE && PYTHONPATH=. .../python .../tests/spools/make_spools.py FOLDER

The script uses what tests of the checkout in the current directory use. An archive has `mail`, `state`
and `expected.json`, the ids of every message; that of PostgreSQL also the tables, as SQL. All paths in it
are relative.
"""

import json
import re
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

from relay import __version__
from tests.support.graph_client import message
from tests.support.postgres import PostgresServer, database_of
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import EXTENSIONS, PassesFirst
from tests.support.remotes import Remotes

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
WITHOUT_DSN = [one for one in EXTENSIONS if one != "DSN"]
LATER = {"MAIL": "451 4.3.2 later"}
OWED, LAST = ["x@a.test", "y@a.test"], "z@a.test"
KEY = {"Idempotency-Key": "order-1"}
ORDER = {"message": message(to=["bob@example.test"], subject="order")}
_OF_PSQL = re.compile(r"^(SET |\\|SELECT pg_catalog.set_config).*\n", re.MULTILINE)
TABLES = "spool.sql"


def filled(relay: RelayProcess) -> dict[str, Any]:
    """Send, hold, defer, schedule and draft messages; return their ids."""
    delivered = relay.send_mail(to=["bob@example.test"], subject="delivered")
    failed = relay.send_mail(to=["nobody@example.test"], subject="failed")
    large = TEXT * 5000  # over 128 KiB: the spool keeps its body in a file
    deferred = relay.send_mail(
        to=["carol@other.test"], cc=["dave@third.test"], subject="deferred", text=large
    )
    by_smtp = relay.submit(
        "alice@example.test",
        ["erin@other.test", "frank@other.test"],
        b"Subject: by SMTP\r\n\r\nHello.\r\n",
    )
    held = relay.send_mail(to=["grace@other.test"], subject="held")
    order = relay.graph("POST", "/me/sendMail", ORDER, headers=KEY)
    assert order.status == 202, order.body
    for one in (delivered, failed, order.headers["x-relay-message-id"]):
        relay.until_final(one)
    for one in (deferred, by_smtp, held):
        relay.until_state(one, "deferred")
    relay.cli_json("queue", "hold", relay.journey(held)["id"])
    relay.until_state(held, "held")
    scheduled = [
        relay.send_mail(
            to=["bob@example.test"],
            subject=f"scheduled {number}",
            singleValueExtendedProperties=[
                {"id": SEND_AT, "value": f"209{number}-01-01T00:00:00Z"}
            ],
        )
        for number in (8, 9)
    ]
    return {
        "delivered": delivered,
        "failed": failed,
        "deferred": {deferred: relay.journey(deferred)["id"], by_smtp: by_smtp},
        "held": {held: relay.journey(held)["id"]},
        "order": order.headers["x-relay-message-id"],
        "scheduled": scheduled,
        "drafts": drafts(relay),
        "upload": upload(relay),
    }


def drafts(relay: RelayProcess) -> dict[str, str]:
    """Make two drafts, one with an attachment; return subject by id."""
    attachment = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": "a.txt",
        "contentBytes": "SGVsbG8=",
    }
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


def left_by_a_kill(relay: RelayProcess) -> dict[str, str]:
    """Kill it while the report of two successes is owed, and before pickup takes a submission."""
    relay.start(crash_at="request-answered")
    owed = relay.submit("alice@example.test", [*OWED, LAST], rcpt_options=["NOTIFY=SUCCESS"])
    expected = dict.fromkeys(OWED, "relayed") | {LAST: "queued"}
    until("two are recorded", lambda: relay.states(owed) == expected)
    ready = relay.send_mail(to=["bob@example.test"], subject="ready")
    relay.wait_end()
    assert [one.parent.name for one in relay.pending_submissions()] == ["ready"]
    return {"owed": owed, "ready": ready}


def make(archive: Path, server: PostgresServer | None) -> None:
    """Run the relay, end it and pack what it leaves."""
    with Remotes() as remotes:
        for domain in ("other.test", "third.test"):
            remotes.start(domain, replies=LATER)
        remotes.start(
            "a.test",
            gates={"MAIL": PassesFirst()},
            rcpt={LAST: ["452 4.5.3 too many", "250 ok"]},
            extensions=WITHOUT_DSN,
        )
        with remotes.relay(config=CONFIG) as relay:
            expected = filled(relay)
            until("all is filed", lambda: not relay.pending_submissions())
            relay.stop()
            expected |= left_by_a_kill(relay)
            for facts in (relay.folder / "mail/.submissions/uploads").glob("*.json"):
                told = json.loads(facts.read_bytes())  # an upload session ends after a day
                facts.write_text(json.dumps(told | {"expires_us": FAR_US}))
            (relay.folder / "expected.json").write_text(json.dumps(expected, indent=1))
            names = ["expected.json", "mail", "state"]
            if server is not None:
                tables = dumped(server, relay.config["spool"]["url"])
                (relay.folder / TABLES).write_text(tables)
                names.append(TABLES)
            with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
                for name in names:
                    tar.add(relay.folder / name, name, filter=_kept)


def dumped(server: PostgresServer, url: str) -> str:
    """Return the tables of a database as SQL that every server takes."""
    words = [
        "--no-owner",
        "--no-acl",
        "--inserts",
        "-h",
        str(server.folder),
        "-p",
        str(server.port),
    ]
    done = subprocess.run(
        [server._programs / "pg_dump", *words, "-U", "postgres", database_of(url)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    return _OF_PSQL.sub("", done.stdout).replace("CREATE SCHEMA public;\n", "")


def _kept(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
    one.uid = one.gid = 0
    one.uname = one.gname = ""
    is_cache = Path(one.name).name.startswith("relay-index")  # has absolute paths; made again
    return None if is_cache or one.name.startswith(NOT_KEPT) else one


def main(folder: Path) -> None:
    """Make both archives."""
    make(folder / f"{__version__}.sqlite.tar.gz", None)
    with PostgresServer() as server:
        RelayProcess.new_spool_url = server.create
        make(folder / f"{__version__}.postgresql.tar.gz", server)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
