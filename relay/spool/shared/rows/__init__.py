"""What accepting, claiming and settling a message write, alike in both engines.

- `accepted`: what an accepted message writes; first states; end of held and captured mail
- `claimed`: which of the due entries are claimed: their order, round robin of senders; at a start,
  what becomes of the claims of a process that was killed
- `settled`: what the result of an attempt writes: states, next attempt, owed reports
- `receipts`: read receipts that are owed

Elsewhere: which of these writes go into one commit: `relay/spool/sqlite/writer.py` and
`relay/spool/postgres/writer.py`; whether a result still counts when its claim has ended (epoch):
`relay/spool/sqlite/transactions.py` and `relay/spool/postgres/transactions.py`.
"""
