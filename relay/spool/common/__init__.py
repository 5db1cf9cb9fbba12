"""What all engines do alike, by SQL that the database of each understands (relay.spool.tables)."""
