"""From measured tables to a timing profile, and from a profile back to tables: how far off it is.

For example:

    table = read_table("nccl_alltoall.csv")
    profile = calibrate([table.where("ranks != 4")], load_profile("vendor"), name="mine", date="2026-11-21")
    report = compare(profile, table.where("ranks == 4"))          # predicted beside measured, with errors by group
"""

from importlib.util import find_spec

if find_spec("pandas"):  # a bare GPU machine draws its loads with planner.calibrate.loads
    from planner.calibrate.accuracy import Comparison, Errors, compare, error_groups
    from planner.calibrate.choices import choices
    from planner.calibrate.profile import calibrate, profile_text
    from planner.calibrate.select import select_rows
    from planner.calibrate.tables import Table, read_table

__all__ = [
    "Comparison",
    "Errors",
    "Table",
    "calibrate",
    "choices",
    "compare",
    "error_groups",
    "profile_text",
    "read_table",
    "select_rows",
]
