"""Hardware: the cluster graph, where it comes from, and how bytes travel on it. Imports none of the other packages."""

from topologies.catalog import catalog_names
from topologies.errors import BadInput, EpplanError, Infeasible
from topologies.graph import Cluster, Gpu, Link, Rank
from topologies.load import load_cluster
from topologies.routes import rail_peers, routes

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
