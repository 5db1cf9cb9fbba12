"""What a long queue costs: `python -m tests.bench.queued`, as `make bench ARGS=queue` runs it."""
