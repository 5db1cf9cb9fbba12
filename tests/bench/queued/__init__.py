"""What a long queue costs: `python -m tests.bench.queued`, as `make bench-queue` runs it."""
