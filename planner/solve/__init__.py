"""The optimiser: from a workload to placements, a bound and a gap."""

from planner.solve.plan_layers import OBJECTIVES, Solution, solve

__all__ = ["OBJECTIVES", "Solution", "solve"]
