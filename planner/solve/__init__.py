"""The optimiser: from a workload to placements, a bound and a gap."""

from planner.solve.plan_layers import solve
from planner.solve.solution import OBJECTIVES, Solution

__all__ = ["OBJECTIVES", "Solution", "solve"]
