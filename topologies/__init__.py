"""Hardware: the cluster graph, where it comes from, and how bytes travel on it. Imports none of the other packages."""

from importlib.util import find_spec

from topologies.errors import BadInput, EpplanError, Infeasible
from topologies.rails import rail_peers

if find_spec("pydantic"):  # a bare GPU machine, with torch and NumPy alone, still runs the layers: benchmarks/gpu.py
    from topologies.catalog import catalog_names
    from topologies.graph import Cluster, Gpu, Link, Rank
    from topologies.load import load_cluster
    from topologies.routes import routes

__all__ = [
    "BadInput",
    "Cluster",
    "EpplanError",
    "Gpu",
    "Infeasible",
    "Link",
    "Rank",
    "catalog_names",
    "load_cluster",
    "rail_peers",
    "routes",
]
