"""What an operator observes: log lines on stderr and Prometheus metrics.

Every room logs and counts. Writing a log line never blocks the event loop.
"""
