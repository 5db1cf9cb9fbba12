"""What the engines of the spool share: the same rows, decisions and SQL on both databases.

- `maintenance`: pruning of history (spool.keep); frees claims of dead owners at a start
- `rows`: what accepting, claiming and settling write; which due entries are claimed
- `queue`: what queue commands do to entries; holds; counts
- `history`: journeys, the list of messages, events, reports from outside
- `group_commit`: what both writers share: waiting operations, how long commits take
- `columns`: columns and values of rows, checksums of contents
- `tables`: what an engine supplies for all of these; which SQL works on both databases

Other rooms get `QueueAdmin`, `SpoolMaintenance` and `ReceiptLedger` from an engine, and name them
in annotations only.
"""
