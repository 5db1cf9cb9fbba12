"""Observation by operators: log lines on stderr and Prometheus metrics.

Every room logs and counts. `metrics` lists all metrics; /metrics prints them. Writing a log line
never blocks the event loop.
"""
