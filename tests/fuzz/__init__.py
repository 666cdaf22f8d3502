"""Fuzz tests: every reader of outside files, fed with broken ones (`python -m tests.fuzz.run`)."""
