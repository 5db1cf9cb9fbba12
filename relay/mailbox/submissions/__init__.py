"""Pending submissions: hard links to submitted drafts, in `.submissions/` under the mail root.

The directory is the queue; memory holds only its beginning.

- `on_disk`: preparing/, ready/, deferred/, restored/ and corrupt/: names, links and fsyncs
- `pending`: the order in which pickup gets submissions (round robin of accounts); a rush
- `scheduled`: scheduled sends (deferred send): change, cancel, ready at their time, too late (409)
- `restored`: what `relay restore` holds: list, release, cancel
- `idempotency`: records of Idempotency-Keys: for how long, which submission a repeat gets
- `idempotency_file`: the file of these records: commits and damage

Elsewhere: step 2, which writes submissions: `relay/mailbox/submit.py`; step 4, which files the
originals: `relay/mailbox/ready_submissions.py`.
"""
