"""Decisions: model, routing, placement, prediction, optimisation, plan.json. Needs no torch.

The verbs of the command line, for jobs; the names in `__all__` are the interface, the rest may change.

cluster, model = load_cluster("hgx-h100:4"), load_model("deepseek-v3")
workload = build_workload(model, cluster, load_routing("loads.json", model), tokens_per_rank=4096)
solution = solve(workload, load_profile(), slots_of_ranks(model, cluster, 9, workload.num_layers))

`assemble_plan` makes a `Plan` of a solution, `Plan.save` and `load_plan` write and read plan.json, `predict` prices any
placements, `export_plan` writes what an engine loads, and `read_placement` with `import_plan` read it back.
"""

from importlib.util import find_spec

from planner.placement import Placement

if find_spec("pydantic"):  # as in topologies
    from planner.assemble import assemble_plan
    from planner.exporters import export_plan
    from planner.importers import import_plan, read_placement
    from planner.model import MoEModel, load_model, model_names
    from planner.plan import Plan, load_plan
    from planner.predict import Prediction, predict
    from planner.request import slots_of_ranks
    from planner.routing import Routing, load_routing
    from planner.solve import Solution, solve
    from planner.timing import TimingProfile, load_profile
    from planner.workload import Workload, build_workload
    from topologies import Cluster, load_cluster

__all__ = [
    "Cluster",
    "MoEModel",
    "Placement",
    "Plan",
    "Prediction",
    "Routing",
    "Solution",
    "TimingProfile",
    "Workload",
    "assemble_plan",
    "build_workload",
    "export_plan",
    "import_plan",
    "load_cluster",
    "load_model",
    "load_plan",
    "load_profile",
    "load_routing",
    "model_names",
    "predict",
    "read_placement",
    "slots_of_ranks",
    "solve",
]
