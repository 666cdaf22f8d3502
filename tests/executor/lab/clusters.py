"""Small clusters of every shape that a lab builds."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from topologies.build import build_cluster
from topologies.graph import Cluster
from topologies.spec import ClusterSpec, Fabric, Gpu, Host, HostGroup, HostLink, HostNode

NIC_GBPS = 50.0
PCIE_GBPS = 63.0


def small(
    hosts: int,
    gpus: int,
    *,
    nics: int | None = None,
    ratio: float = 9.0,
    mesh: bool = False,
    domain_hosts: int = 1,
    **fabric: Any,
) -> Cluster:
    """Return hosts of some GPUs, each PCIe switch with its share of the GPUs and NICs.

    nvswitch -- gpu0 -- pci0 -- nic0 -- leaf0 -- spine        or, with `mesh`, GPUs cabled to each other
    """
    nics = gpus if nics is None else nics
    switches = min(gpus, nics)
    nodes = [HostNode(name=f"gpu{i}", kind="gpu", model="g") for i in range(gpus)]
    nodes += [HostNode(name=f"pci{i}", kind="pci") for i in range(switches)]
    nodes += [HostNode(name=f"nic{i}", kind="nic", gbps=NIC_GBPS) for i in range(nics)]
    fast = NIC_GBPS * ratio
    if mesh:
        links = [
            HostLink(a=f"gpu{i}", b=f"gpu{j}", kind="xgmi", gbps=fast / gpus) for i, j in combinations(range(gpus), 2)
        ]
    else:
        nodes.append(HostNode(name="nvswitch", kind="nvswitch"))
        links = [HostLink(a=f"gpu{i}", b="nvswitch", kind="nvlink", gbps=fast) for i in range(gpus)]
    pcie = PCIE_GBPS * max(1, nics // gpus)
    links += [HostLink(a=f"gpu{i}", b=f"pci{i * switches // gpus}", kind="pcie", gbps=pcie) for i in range(gpus)]
    links += [HostLink(a=f"nic{i}", b=f"pci{i * switches // nics}", kind="pcie", gbps=PCIE_GBPS) for i in range(nics)]
    return build_cluster(
        ClusterSpec(
            name=f"{hosts}x{gpus}",
            gpus={"g": Gpu("g", 1, 1.0, {})},
            hosts={"h": Host(nodes=tuple(nodes), links=tuple(links))},
            layout=(HostGroup(host="h", count=hosts),),
            domain_hosts=domain_hosts,
            fabric=Fabric(**fabric),
        )
    )


SHAPES: dict[str, Cluster] = {
    "2 hosts x 4": small(2, 4),
    "4 hosts x 4": small(4, 4),
    "8 hosts x 2, spine 2:1": small(8, 2, oversubscription=2.0),
    "one host": small(1, 4),
    "one rank": small(1, 4).subset([2]),
    "meshes": small(2, 4, mesh=True),
    "two GPUs a NIC": small(2, 4, nics=2),
    "two NICs a GPU": small(2, 2, nics=4),
    "two leaves a rail": small(4, 2, radix=4),
    "fat tree": small(4, 2, kind="fat-tree", radix=4),
    "single switch": small(3, 2, kind="single-switch"),
    "domains of two hosts": small(4, 2, domain_hosts=2),
    "a part of it": small(3, 4).subset([9, 0, 2, 5, 6, 10]),
    "rails that do not meet": small(2, 4).subset([0, 1, 6, 7]),
}
