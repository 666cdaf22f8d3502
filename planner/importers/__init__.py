"""Placements that engines use, read back into plans: the formats that `planner.exporters` writes, and no other.

`read_placement(file, "sglang", model, cluster)` checks a file; `import_plan` predicts it and makes it a plan that can
be evaluated, compared and improved.
"""

from planner.importers.formats import FORMATS
from planner.importers.importing import import_plan, read_placement
from planner.importers.match import Imported

__all__ = ["FORMATS", "Imported", "import_plan", "read_placement"]
