"""Pending submissions: hard links to submitted drafts, in `.submissions/` under the mail root.

`on_disk` is the directory, `scheduled` holds the scheduled sends until their time, `pending` hands
the ready ones to pickup (step 3), `idempotency` has the records of the clients' keys, `restored`
what `relay restore` holds. The directory is the queue; memory holds only its beginning.
relay/mailbox/submit.py writes submissions (step 2), relay/mailbox/ready_submissions.py files the
originals (step 4).
"""
