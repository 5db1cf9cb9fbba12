"""Step 3: convert pending submissions to MIME and submit them by SMTP; the 250 starts step 4.

A submission ends with its original filed in Sent Items, or with a report in the sender's Inbox;
until then it is retried. The submission id is the key of the message in the spool, so a repeated
submission is the same message.

- `dispatch`: takes submissions from the store and processes a few at a time
- `start_limits`: when a submission may start: per account, during a rush, while the server accepts
  nothing
- `processing`: one attempt: read, convert, submit on run/pickup.sock with ENVID as the submission
  id, file in Sent Items or report to the sender
- `conversion`: which drafts a child process converts; time limits; the second try, in another
  process
- `conversion_child`: what the child process is asked and answers; its memory
- `decisions`: which SMTP reply ends a submission; delay before a retry (back-off); giving up

Elsewhere: how a draft becomes MIME: `relay/formats/convert.py`; what of a MIME draft is
rewritten: `relay/formats/repair_mime.py`; into which folder the original goes:
`relay/submission/outbox/ready_submissions.py`; the order of submissions and scheduled sends:
`relay/submission/outbox/`; the server on that socket: `relay/transport/ingress/smtp_server.py`.
"""
