"""The outbox: what a 202 promised and the spool has not yet accepted (steps 1, 2 and 4).

One name decides, then only forward: a submission exists from the moment its file has its name in
`.submissions/ready` or `deferred`. The directory is the only store; memory holds only its
beginning. A submission is a hard link to the draft that was submitted.

- `submit`: a draft becomes a pending submission (202): order of link, rename and fsync; undo
- `arrivals`: drafts from large MIME, written while it arrives
- `upload_sessions`: attachments in ranges; when a session expires
- `ready_submissions`: what pickup gets; step 4: into which folder the original goes (Sent Items),
  or its removal; a send now or its cancel
- `pending`: the order in which pickup gets submissions (round robin of accounts); a rush
- `scheduled`: scheduled sends (deferred send): change, cancel, ready at their time, too late (409)
- `unfinished`: what a start removes or finishes in preparing/ after a crash
- `restored`: what `relay restore` holds: list, release, cancel
- `idempotency`: records of Idempotency-Keys: for how long, which submission a repeat gets
- `on_disk`: preparing/, ready/, deferred/, restored/ and corrupt/: names, links and fsyncs
- `store`: FileStore: mailboxes and outbox of a mail root: its parts, its start, its end

Elsewhere: drafts and folders: `relay/store/mailbox`; when a submission is converted and sent:
`relay/submission/pickup`; what the repeat of a request is answered:
`relay/front_door/graph/admission.py`.
"""
