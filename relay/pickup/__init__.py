"""Step 3: convert pending submissions to MIME and submit them by SMTP; the 250 starts step 4.

A submission ends with its original filed in Sent Items, or with a report in the sender's Inbox;
until then it is retried. The submission id is the key of the message in the spool, so a repeated
submission is the same message.

`dispatch` takes submissions from the store when `gate` is open, `processing` makes one attempt with
one of them, `conversion` makes MIME in child processes, `smtp_client` submits on run/pickup.sock,
`decisions` has the pure decisions: outcome, retry delay, giving up.
"""
