"""What an operator observes: log lines on stderr and Prometheus metrics.

Every room logs and counts; writing a log line never blocks the event loop.
"""
