"""The outbox: messages that a 202 promised and the spool has not accepted yet (steps 1, 2 and 4).

A submission is a hard link to the draft that was submitted. It exists from the moment its file has
its name in `.submissions/ready` or `deferred`; from then on it is never undone, only continued. The
directory is the only store; memory holds only the beginning of the queue.

- `submit`: a draft becomes a pending submission (202): order of link, rename and fsync; undo
- `arrivals`: drafts from large MIME, written while it arrives
- `upload_sessions`: attachments in ranges; when a session expires
- `ready_submissions`: the submissions for pickup; step 4: into which folder the original goes (Sent
  Items), or its removal; send a scheduled message now, or cancel it
- `pending`: the order in which pickup gets submissions (round robin of accounts); a rush
- `scheduled`: scheduled sends (deferred send): change, cancel, ready at their time, too late (409)
- `unfinished`: which files in preparing/ a start removes or finishes after a crash
- `restored`: submissions that `relay restore` holds: list, release, cancel
- `idempotency`: records of Idempotency-Keys: for how long, which submission a repeat gets
- `on_disk`: preparing/, ready/, deferred/, restored/ and corrupt/: names, links and fsyncs
- `store`: FileStore: mailboxes and outbox of a mail root: its parts, its start, its end

Elsewhere: drafts and folders: `relay/store/mailbox`; when a submission is converted and sent:
`relay/submission/pickup`; the response to a repeated request:
`relay/front_door/graph/admission.py`.
"""
