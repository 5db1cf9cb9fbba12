"""Delivery by Microsoft Graph: a next hop graph://HOST.

In: a transaction, as for SMTP. Out: requests, each with exactly its recipients, and the result.

- `connection`: a session with the host: TLS, tokens; what is made, sent, looked for, deleted; when
  something is sent again
- `filling`: what a draft with files must have before it is sent; for how long Graph is waited for
- `upload`: to which hosts files go
- `turns`: which message with files of a mailbox is next
- `outcomes`: which answer is which outcome, and what the operator can do; Retry-After
- `claim_requests`: the requests of a claim that are in the spool
- `drafts`: which drafts are deleted outside of an attempt
"""
