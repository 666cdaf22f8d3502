"""Scripts that measure, and print tables for the docs: run them from the repository root as `python -m benchmarks.NAME`."""
