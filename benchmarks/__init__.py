"""Scripts that measure and print tables for the docs: `python -m benchmarks.NAME` in the root of the repository."""
