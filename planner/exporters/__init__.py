"""Files that engines load, from a plan: one module a format, with the format's rules and where they were read.

`export_plan(plan, "sglang")` returns the file and the flags to launch with. What a format cannot hold (`Limits`) is
refused with the remedy, or, with `lossy`, left out with its predicted cost.
"""

from planner.exporters.export import TARGETS, Exported, Loss, export_plan

__all__ = ["TARGETS", "Exported", "Loss", "export_plan"]
