"""The spool in PostgreSQL, for several nodes or one. Only this package imports asyncpg."""
