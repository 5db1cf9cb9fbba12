"""Step 7: bounces and other reports about failed messages.

A report is committed to the spool in one transaction with the failure. One report covers all
recipients of a message that failed together. No report is sent about a report, to the null
reverse-path, to untrusted senders, or against NOTIFY. A report that cannot be delivered goes to the
postmaster.

- `bounces`: who gets a bounce, delay or success report, and who gets none (NOTIFY, null sender,
  backscatter); limits of reports per sender; who gets copies of reports; the report's own route
- `wording`: which class of failure a bounce explains, what it shows; how Accept-Language is read
- `texts`: which language a report is in, and its words: Relay's, the operator's templates, their
  faults
- `receipts`: read receipts (MDN): which are sent without asking the user (never, ask, always,
  auto), and when a copy was read

Elsewhere: when a delay report is due: `relay/transport/ingress/acceptance.py` sets the time,
`relay/delivery/attempt_result.py` decides; the parts of a DSN:
`relay/formats/dsn.py`, of an MDN: `relay/formats/mdn.py`; reports received from other hosts:
`relay/store/spool/shared/results.py`.
"""
