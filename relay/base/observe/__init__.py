"""Observation by operators: log lines on stderr and Prometheus metrics.

Every room logs and counts. Writing a log line never blocks the event loop.

- `logs`: the log: its formats, which fields are secrets, length of lines, when lines are dropped
- `metrics`: the names and labels of all metrics, as /metrics prints them
- `metric_samples`: the metrics of the last hour, minute by minute, for the page Health

Elsewhere: /metrics, /healthz and /readyz are answered in `relay/front_door/api/app.py`; why /readyz
is 503: `relay/operation/app/front_door.py`; events and journeys of messages:
`relay/store/journeys`.
"""
