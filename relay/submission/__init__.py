"""Steps 2, 3 and 4, and the file of step 1: what a 202 promised, until transport accepted it.

In: drafts to submit, and what a start finds in `.submissions/`. Out: its MIME, by SMTP to
transport's own socket; after the 250 the original in Sent Items (or where the message says); a
report in the sender's Inbox if it fails for good.

- `outbox`: the submissions on disk (preparing/, ready/): pending, scheduled, with a key, uploads;
  step 4; what a start does after a crash
- `pickup`: when a submission is started, how it is converted in a child process and sent

Elsewhere: the conversion itself: `relay/formats/convert.py`; who answers on that socket:
`relay/transport/ingress`; drafts and folders: `relay/store/mailbox`.
"""
