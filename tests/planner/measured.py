"""Where tests find the measured tables; they are not part of the repository."""

import os
from pathlib import Path

import pytest

from planner.calibrate import Table, read_table

FOLDER = Path(os.environ.get("EPPLAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "measured"


def measured(name: str) -> Table:
    """Read a measured table, or skip the test with the reason."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"measured table {name} is not there (EPPLAN_DATA)")
    return read_table(FOLDER / name)
