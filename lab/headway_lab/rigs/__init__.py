"""What a benchmark needs around the engine: a simulated device, a reader of its messages, a scale for its memory."""
