"""The lab: the network of a cluster in miniature on one Linux machine, of namespaces and shaped wires.

Every rank has a network namespace of its own, with an interface to its scale-up switch and one to its rail's leaf;
every wire has its graph bandwidth times one factor; and the kernel counts what each link carries.
Read in this order: `ways` (links of the graph to wires), `network` (wires to cables, bridges and addresses), `rates`
and `shaping` (how fast, and why so), `build` (netlink), `registry` (what stands, and how it is removed), `lab`.
"""

from importlib.util import find_spec

from topologies.errors import BadInput

if find_spec("pyroute2") is None:
    raise BadInput("the lab needs pyroute2, which is not installed: pip install 'epplan[executor]'")

from executor.lab.counters import wire_bytes
from executor.lab.lab import Lab, Place, attach, open_lab, raise_lab
from executor.lab.network import Network, plan_network
from executor.lab.rates import default_scale, scale_for_nic

__all__ = [
    "Lab",
    "Network",
    "Place",
    "attach",
    "default_scale",
    "open_lab",
    "plan_network",
    "raise_lab",
    "scale_for_nic",
    "wire_bytes",
]
