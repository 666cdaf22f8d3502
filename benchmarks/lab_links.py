"""How well TCP fills the links of a lab, and whether the kernel counts what was sent: prints a table of measurements.

    sudo python benchmarks/lab_links.py [--nic-mbit 100] [--policy pxn]

For each cluster and pattern of traffic it prints the time that the graph allows (the busiest link: bytes of the routes
matrix over its rate in the lab), the time that plain sockets took (median of 3), their quotient, over all links that
carry anything the largest difference between counted bytes and those of the wire model (`executor/lab/counters`), and
the segments that TCP sent again.
R ranks, L links.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from executor.lab import Lab, Place, default_scale, open_lab, scale_for_nic, wire_bytes
from topologies import BadInput
from topologies.build import build_cluster
from topologies.catalog import gpu_entries, load_system, system_host
from topologies.graph import Cluster
from topologies.routes import routes
from topologies.spec import ClusterSpec, HostGroup

PORT = 5000
CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 120.0
REPEATS = 3
LOST_BYTES = 64 * 1024  # links with less than that are not compared: handshakes and barriers weigh there

Matrix = NDArray[np.int64]
Rounds = list[Matrix]  # bytes [R, R] from row to column, one matrix a round


def h100(hosts: int, gpus: int, **fabric: object) -> Cluster:
    """Return hosts of some H100s with a NIC each: NVLink nine times as fast as a NIC."""
    system = load_system("hgx-h100")
    system = system.model_copy(
        update={
            "gpus_per_host": gpus,
            "nics": system.nics.model_copy(update={"per_host": gpus}),
            "pcie": system.pcie.model_copy(update={"switches": gpus}),
        }
    )
    spec = ClusterSpec(
        name=f"{hosts} hosts x {gpus} H100",
        gpus={system.gpu: gpu_entries()[system.gpu].figures},
        hosts={"host": system_host(system)},
        layout=(HostGroup(host="host", count=hosts),),
        fabric=system.fabric.model_copy(update=fabric),
    )
    return build_cluster(spec)


def patterns(cluster: Cluster, scale: float, seconds: float) -> Iterator[tuple[str, Rounds]]:
    """Yield patterns of traffic, sized to keep the slowest tier that they use busy for some seconds."""
    size, domain = cluster.num_ranks, cluster.domain_of_rank
    nic = int(50e9 * scale * seconds)
    near = np.where(domain[:, None] == domain, 1, 0) - np.eye(size, dtype=np.int64)
    far = (domain[:, None] != domain).astype(np.int64)
    neighbour = np.zeros((size, size), dtype=np.int64)
    neighbour[np.arange(size), _peer(domain, same=True)] = 1
    across = np.zeros((size, size), dtype=np.int64)
    across[np.arange(size), _peer(domain, same=False)] = 1
    into_one = np.zeros((size, size), dtype=np.int64)
    into_one[1:, 0] = 1
    yield "one to one, scale-up", [neighbour * nic * 9]
    yield "one to one, NIC", [across * nic]
    yield "fan-in, scale-up", [near * into_one * (nic * 9 // int((near * into_one).sum()))]
    yield "fan-in, NIC", [far * into_one * (nic // int((far * into_one).sum()))]
    each = nic // int(far[0].sum())
    even = np.full((size, size), each) * (1 - np.eye(size, dtype=np.int64))
    uneven = even * np.random.default_rng(0).integers(25, 175, (size, size)) // 100
    for name, matrix in (("even", even), ("uneven", uneven)):
        yield f"all-to-all, {name}, rounds of rank + i", _rounds(matrix)
        yield f"all-to-all, {name}, rounds by tier", _tier_rounds(matrix, domain)
        yield f"all-to-all, {name}, at once", [matrix]


def _peer(domain_R: NDArray[np.int64], *, same: bool) -> list[int]:
    """Return for every rank the next one of its own domain, or the one of its place in the next domain."""
    peers = []
    for rank, own in enumerate(domain_R.tolist()):
        members = np.flatnonzero(domain_R == (own if same else (own + 1) % (int(domain_R.max()) + 1)))
        place = int(np.flatnonzero(np.flatnonzero(domain_R == own) == rank)[0])
        peers.append(int(members[(place + same) % len(members)]))
    return peers


def _rounds(bytes_RR: Matrix) -> Rounds:
    """Return the rounds of an all-to-all: in round i, rank r sends to r + i."""
    size = len(bytes_RR)
    rank = np.arange(size)
    rounds = []
    for step in range(1, size):
        one = np.zeros_like(bytes_RR)
        one[rank, (rank + step) % size] = bytes_RR[rank, (rank + step) % size]
        rounds.append(one)
    return rounds


def _tier_rounds(bytes_RR: Matrix, domain_R: NDArray[np.int64]) -> Rounds:
    """Return rounds in each of which every rank sends to one rank of another domain, and to one of its own."""
    place = np.array([int((domain_R[:rank] == own).sum()) for rank, own in enumerate(domain_R)])
    domains, width = int(domain_R.max()) + 1, int(place.max()) + 1
    far = (domain_R - domain_R[:, None]) % domains
    turn = (place - place[:, None]) % width
    kind = np.where(far > 0, (far - 1) * width + turn, turn - 1)
    return [np.where(kind == step, bytes_RR, 0) for step in range(int(kind.max()) + 1)]


class Ranks:
    """A process in each namespace of a lab, joined by sockets, that runs rounds when told to."""

    def __init__(self, lab: Lab) -> None:
        context = get_context("spawn")
        addresses = lab.network.addresses
        barrier = context.Barrier(len(addresses))
        self.pipes, self.processes = [], []
        for place in lab.places:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(place, addresses, theirs, barrier), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        self._answers()

    def run(self, rounds: Rounds) -> float:
        """Return the seconds that the slowest rank took."""
        for pipe in self.pipes:
            pipe.send(rounds)
        return max(self._answers())

    def _answers(self) -> list[float]:
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(TIMEOUT_S):
                sys.exit(f"rank {rank} did not answer within {TIMEOUT_S:g} s")
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()


def serve(place: Place, addresses: tuple[str, ...], pipe: Connection, barrier: Barrier) -> None:
    """Be one rank: join the others, then run what comes."""
    place.enter()
    peers = join(place, addresses)
    pipe.send(0.0)
    while True:
        rounds: Rounds = pipe.recv()
        barrier.wait(TIMEOUT_S)
        start = time.perf_counter()
        for one in rounds:
            exchange(peers, dict(enumerate(one[place.rank].tolist())), dict(enumerate(one[:, place.rank].tolist())))
        pipe.send(time.perf_counter() - start)


def join(place: Place, addresses: tuple[str, ...]) -> dict[int, socket.socket]:
    """Return a socket to every other rank: those below are called, those above call."""
    peers = {}
    with socket.create_server((place.address, PORT), backlog=len(addresses)) as server:
        for rank in range(place.rank):
            peers[rank] = _call(addresses[rank], place.address)
        for _ in range(place.rank + 1, len(addresses)):
            caller, (address, _) = server.accept()
            peers[addresses.index(address)] = caller
    for peer in peers.values():
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return {rank: peers[rank] for rank in [*range(place.rank + 1, len(addresses)), *range(place.rank)]}


def _call(address: str, own: str) -> socket.socket:
    for _ in range(int(TIMEOUT_S * 20)):
        try:
            return socket.create_connection((address, PORT), source_address=(own, 0))
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(address)


def exchange(peers: dict[int, socket.socket], to_send: dict[int, int], to_receive: dict[int, int]) -> None:
    """Send to and receive from every peer so many bytes, all at once."""
    chunk, scratch = memoryview(bytes(CHUNK_BYTES)), memoryview(bytearray(CHUNK_BYTES))
    with selectors.DefaultSelector() as selector:
        wanted = {}
        for rank, peer in peers.items():  # in the order rank + 1, rank + 2, ..: not all to the same
            wanted[rank] = selectors.EVENT_WRITE * (to_send[rank] > 0) | selectors.EVENT_READ * (to_receive[rank] > 0)
            if wanted[rank]:
                selector.register(peer, wanted[rank], rank)
        while selector.get_map():
            for key, events in selector.select():
                rank, peer = key.data, peers[key.data]
                if events & selectors.EVENT_WRITE:
                    to_send[rank] -= peer.send(chunk[: to_send[rank]])
                if events & selectors.EVENT_READ:
                    to_receive[rank] -= peer.recv_into(scratch[: to_receive[rank]])
                left = selectors.EVENT_WRITE * (to_send[rank] > 0) | selectors.EVENT_READ * (to_receive[rank] > 0)
                if left == 0:
                    selector.unregister(peer)
                elif left != key.events:
                    selector.modify(peer, left, rank)


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    allowed_s: float
    took_s: float
    bytes_error: float
    resent: int


def measure(lab: Lab, cluster: Cluster, ranks: Ranks, rounds: Rounds) -> Measured:
    """Run a pattern, and compare time and bytes with what the graph says."""
    route_PL = routes(cluster, lab.network.policy)
    payload_RR = sum(rounds[1:], rounds[0]).astype(np.float64)
    payload_L, reverse_L = payload_RR.reshape(-1) @ route_PL, payload_RR.T.reshape(-1) @ route_PL
    rate_L = cluster.link_gbps * lab.network.scale * 1e9
    ranks.run(rounds)  # so that TCP's windows are open
    before, resent = lab.link_bytes(cluster.num_links), resent_segments(lab)
    took = [ranks.run(rounds) for _ in range(REPEATS)]
    counted_L = (lab.link_bytes(cluster.num_links) - before) / REPEATS
    expected_L = wire_bytes(payload_L, reverse_L)
    busy = payload_L > LOST_BYTES
    error = np.abs(counted_L[busy] / expected_L[busy] - 1).max()
    return Measured(
        float((payload_L / rate_L).max()), statistics.median(took), float(error), resent_segments(lab) - resent
    )


def resent_segments(lab: Lab) -> int:
    """Return how many segments TCP has sent again so far, on all ranks."""

    def read() -> int:
        tcp = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if "Tcp:" in line]
        return int(dict(zip(*tcp, strict=True))["RetransSegs"])

    return sum(place.inside(read) for place in lab.places)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nic-mbit", type=float, help="rate of a NIC, Mbit/s (default: what this machine can fill)")
    parser.add_argument("--seconds", type=float, default=0.5, help="for which each pattern should keep its links busy")
    parser.add_argument("--only", default="", help="measure only patterns with this in their name")
    parser.add_argument("--policy", choices=("pxn", "direct"), nargs="*", default=["pxn", "direct"])
    arguments = parser.parse_args()
    print(
        "| cluster | routes | NIC Mbit/s | pattern | allowed s | took s (measured) | share | error of bytes | resent |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for cluster in (h100(2, 4), h100(4, 4), h100(8, 2, oversubscription=2.0)):
        scale = default_scale(cluster) if arguments.nic_mbit is None else scale_for_nic(cluster, arguments.nic_mbit)
        for policy in arguments.policy:
            with open_lab(cluster, scale=scale, policy=policy) as lab:
                ranks = Ranks(lab)
                try:
                    for name, rounds in patterns(cluster, scale, arguments.seconds):
                        if arguments.only not in name:
                            continue
                        row = measure(lab, cluster, ranks, rounds)
                        what = f"{cluster.name} | {policy} | {scale * 400e3:.0f} | {name}"
                        share = row.allowed_s / row.took_s
                        times = f"{row.allowed_s:.3f} | {row.took_s:.3f} | {share:.3f}"
                        print(f"| {what} | {times} | {row.bytes_error:.2%} | {row.resent} |", flush=True)
                finally:
                    ranks.close()


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"lab_links: {error}")
