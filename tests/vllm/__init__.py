"""vLLM itself, on a CPU; skipped where it is not installed."""
