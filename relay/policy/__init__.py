"""Policy: the engine that reads policies/ and decides about messages (step 5)."""
