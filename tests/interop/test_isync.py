"""isync copies a mailbox of Relay's: moves over HTTP are moves in the copy, and tags stay."""

from tests.interop.test_dovecot import arrives, dovecot, tag

__all__ = ["dovecot"]

CONFIGURATION = """\
MaildirStore relay
Inbox {relay}
SubFolders Maildir++

MaildirStore copy
Inbox {copy}
SubFolders Maildir++

Channel all
Far :relay:
Near :copy:
Patterns INBOX Archive
Create Near
Expunge Both
SyncState *
"""


def test_a_message_that_is_moved_between_two_syncs(relay, dovecot, run, tmp_path):
    copy, configuration = tmp_path / "copy", tmp_path / "mbsyncrc"
    configuration.write_text(CONFIGURATION.format(relay=relay.home("alice"), copy=copy))

    def sync() -> dict[str, list[str]]:
        """Sync; return the flags of the messages in the copy's folders."""
        done = run("mbsync", "-c", str(configuration), "all")
        assert (done.returncode, done.stderr) == (0, "")
        folders = {"INBOX": copy, "Archive": copy / ".Archive"}
        return {
            name: [file.name.partition(":2,")[2] for file in path.glob("[nc]*/*")]
            for name, path in folders.items()
        }

    first, second = arrives(relay, "first"), arrives(relay, "second")
    with dovecot.session() as imap:
        tag(imap, "first", "INBOX", "\\Flagged", "$label1")
        tag(imap, "second", "INBOX", "$label2", "$label1")
        assert sorted(sync()["INBOX"]) == ["", "F"]
        move = {"destinationId": "archive"}
        assert relay.graph("POST", f"/me/messages/{first}/move", move).status == 201
        assert sync() == {"INBOX": [""], "Archive": ["F"]}
        assert relay.graph("POST", f"/me/messages/{second}/move", move).status == 201
        move["destinationId"] = "inbox"
        assert relay.graph("POST", f"/me/messages/{first}/move", move).status == 201
        assert sync() == {"INBOX": ["F"], "Archive": [""]}
        assert imap.flags("INBOX") == {"first": {"\\Flagged", "$label1"}}
        assert imap.flags("Archive") == {"second": {"$label1", "$label2"}}
    assert relay.graph("GET", f"/me/messages/{first}").json()["parentFolderId"] == "inbox"
