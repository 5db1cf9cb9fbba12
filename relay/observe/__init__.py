"""Observation by operators: log lines on stderr and Prometheus metrics.

Every room logs and counts. `metrics` lists all metrics; /metrics prints them; `history` has
those of the last hour. `logs` writes log lines; fields named as secrets are redacted. Writing
a log line never blocks the event loop.
"""
