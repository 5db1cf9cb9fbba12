"""Step 7: bounces and other reports about failed messages.

A report is committed to the spool in one transaction with the failure. One report covers all
recipients of a message that failed together. No report is sent about a report, to the null
reverse-path, to untrusted senders, or against NOTIFY. A report that cannot be delivered goes to the
postmaster.

`bounces` decides who gets a report and makes it (its parts: `relay/mime/dsn.py`), and limits
success and delay reports; `texts` and `wording` have the words. `receipts` are read receipts.
"""
