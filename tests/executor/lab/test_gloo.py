"""torch.distributed in a lab: eight ranks on two hosts exchange by gloo, and the kernel counts what they sent."""

from __future__ import annotations

from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import numpy as np
import pytest
import torch.distributed as dist
from numpy.typing import NDArray
from torch import empty, full, uint8

from executor.lab import Place, wire_bytes
from tests.executor.lab.clusters import small
from tests.executor.lab.conftest import Open
from topologies.routes import routes

pytestmark = pytest.mark.lab

TIMEOUT_S = 120.0
REPEATS = 4


def exchange_by_gloo(
    place: Place, store_port: int, store_address: str, bytes_RR: NDArray[np.int64], pipe: Connection
) -> None:
    """Be one rank: tell when all have met, and exchange when told to, in rounds: to rank + i, from rank - i."""
    place.enter()
    size, rank, patience = len(bytes_RR), place.rank, timedelta(seconds=TIMEOUT_S)
    store = dist.TCPStore(store_address, store_port, is_master=False, timeout=patience)  # type: ignore[attr-defined]  # it is public
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    dist.barrier()
    pipe.send("met")
    pipe.recv()
    received = [empty(count, dtype=uint8) for count in bytes_RR[:, rank].tolist()]
    for _ in range(REPEATS):
        for step in range(1, size):
            to, origin = (rank + step) % size, (rank - step) % size
            sent = full((int(bytes_RR[rank, to]),), rank, dtype=uint8)
            for work in (dist.irecv(received[origin], src=origin), dist.isend(sent, dst=to)):
                assert work is not None
                work.wait()
    assert all((one == origin).all() for origin, one in enumerate(received) if origin != rank)
    pipe.send("exchanged")
    pipe.recv()
    dist.destroy_process_group()


def _all_say(pipes: list[Connection], what: str) -> None:
    """Wait until every rank has said so; fail with the name of one that has not."""
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting:
        ready = wait(waiting, TIMEOUT_S)
        assert ready, f"ranks {sorted(waiting.values())} hang before {what!r}"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                assert pipe.recv() == what
            except EOFError:
                pytest.fail(f"rank {rank} died before {what!r}")


def test_bytes_of_an_uneven_all_to_all(lab_of: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    h0: 0 1 2 3 -- switch0      every pair of the 8 ranks exchanges 100 to 400 KB, four times;
    h1: 4 5 6 7 -- switch1      every link then counts its bytes within 3 %
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = small(2, 4)
    lab = lab_of(cluster, scale=2e-4)
    bytes_RR = np.random.default_rng(0).integers(100_000, 400_000, (8, 8))
    np.fill_diagonal(bytes_RR, 0)
    first = lab.places[0]
    store = first.inside(lambda: dist.TCPStore(first.address, 0, is_master=True, wait_for_workers=False))  # type: ignore[attr-defined]  # as above
    context = get_context("spawn")
    processes, pipes = [], []
    try:
        for place in lab.places:
            ours, theirs = context.Pipe()
            arguments = (place, store.port, first.address, bytes_RR, theirs)
            processes.append(context.Process(target=exchange_by_gloo, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        _all_say(pipes, "met")
        before_L = lab.link_bytes(cluster.num_links)
        for pipe in pipes:
            pipe.send("go")
        _all_say(pipes, "exchanged")
        counted_L = lab.link_bytes(cluster.num_links) - before_L
        for pipe in pipes:
            pipe.send("leave")
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    route_PL = routes(cluster, lab.network.policy)
    payload_RR = bytes_RR.astype(np.float64) * REPEATS
    expected_L = wire_bytes(payload_RR.reshape(-1) @ route_PL, payload_RR.T.reshape(-1) @ route_PL)
    loaded = expected_L > 0
    assert loaded.sum() == 8 * 2 + 8 * 3 * 2  # up and down NVLink; GPU, PCIe, NIC, leaf, both ways
    np.testing.assert_allclose(counted_L[loaded], expected_L[loaded], rtol=0.03)
