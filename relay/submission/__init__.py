"""Steps 2, 3 and 4, and the file of step 1: messages that a 202 promised, until transport accepts.

Input: drafts to submit, and the files that a start finds in `.submissions/`. Output: MIME, by SMTP
to transport's socket for pickup; after the 250 the original in Sent Items (or in the folder that
the message names); a report in the sender's Inbox if it fails permanently.

- `outbox`: the submissions on disk (preparing/, ready/): pending, scheduled, with a key, uploads;
  step 4; recovery at a start after a crash
- `pickup`: when a submission is started, how it is converted in a child process and sent

Elsewhere: the conversion itself: `relay/formats/convert.py`; the server on that socket:
`relay/transport/ingress`; drafts and folders: `relay/store/mailbox`.
"""
