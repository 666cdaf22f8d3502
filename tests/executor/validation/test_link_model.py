"""Link loads, the fit, and the search for slow links: on a graph small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from executor.validation.flows import flow_bytes, flow_patterns, slow_links
from executor.validation.link_loads import LABEL_BYTES, Links, phase_bytes
from executor.validation.link_model import PhaseLoad, fit_links, nominal_us_L
from planner.exact_rows import HopTraffic
from topologies import BadInput, load_cluster

LINKS = Links(load_cluster("hgx-h100:4").subset([0, 1, 8, 9, 16, 17, 24, 25]))  # four hosts, two GPUs of each


def load_of(bytes_RR: np.ndarray, exchange: str = "dedup") -> PhaseLoad:
    return PhaseLoad((exchange, "dispatch"), (bytes_RR,))


def true_us(load: PhaseLoad) -> float:
    """Return the time of a machine that we make up: NVLink at 0.8, NICs at 0.9 of their rates, 50 us, 1 us a MB."""
    speed = {"nvlink": 0.8, "nic": 0.9}
    start, handling = (20.0, 0.0) if load.family[0] == "one-to-one" else (50.0, 1e-6)
    total = start + handling * load.moved_bytes
    for bytes_RR in load.hops:
        us_L = nominal_us_L(LINKS, bytes_RR, 1.0)
        kinds = LINKS.cluster.link_kinds
        total += max(us / speed.get(kind, 1.0) for us, kind in zip(us_L, kinds, strict=True))
    return total


def random_bytes(seed: int, size: float, near: bool) -> np.ndarray:
    """Return bytes between ranks; `near` keeps most of them inside domains."""
    rng, domain = np.random.default_rng(seed), LINKS.cluster.domain_of_rank
    bytes_RR = rng.random((8, 8)) * size
    return np.where((domain[:, None] == domain) | (not near), bytes_RR, bytes_RR / 1000)


def probes() -> tuple[list[tuple[PhaseLoad, float]], list[tuple[PhaseLoad, float]]]:
    patterns = flow_patterns(LINKS.cluster.domain_of_rank, LINKS.cluster.rail_of_rank)
    flows = [
        PhaseLoad(("one-to-one", "dispatch"), (flow_bytes(p, n),)) for p in patterns for n in (10**4, 10**6, 10**7)
    ]
    uniform = [load_of(np.full((8, 8), size)) for size in (1e5, 1e6, 3e6)]
    return [(load, true_us(load)) for load in flows], [(load, true_us(load)) for load in uniform]


def test_fit_finds_the_machine_and_predicts_unseen_traffic() -> None:
    model = fit_links(*probes(), LINKS, 1.0)
    assert model.efficiency["nvlink"] == pytest.approx(0.8, rel=1e-3)
    assert model.efficiency["nic"] == pytest.approx(0.9, rel=1e-3)
    assert model.start_us["dedup", "dispatch"] == pytest.approx(50.0, rel=1e-2)
    for seed in range(5):
        for near in (False, True):
            unseen = load_of(random_bytes(seed, 1e7, near))
            made = model.predict(unseen, LINKS)
            assert made.us == pytest.approx(true_us(unseen), rel=1e-3)
            assert max(made.us_R) == pytest.approx(made.us, rel=1e-9)
            assert made.bottleneck.startswith("nvlink" if near else "nic")


def test_hops_add_up() -> None:
    model = fit_links(*probes(), LINKS, 1.0)
    out, up = random_bytes(1, 1e7, near=False), random_bytes(2, 1e7, near=True)
    both = model.predict(PhaseLoad(("dedup", "dispatch"), (out, up)), LINKS).us
    start, handling = model.start_us["dedup", "dispatch"], model.handling_us_per_byte["dedup", "dispatch"]
    alone = [model.predict(load_of(one), LINKS).us - start - handling * one.sum() for one in (out, up)]
    assert both == pytest.approx(sum(alone) + start + handling * (out.sum() + up.sum()), rel=1e-6)


def test_an_exchange_that_was_not_probed_is_refused() -> None:
    model = fit_links(*probes(), LINKS, 1.0)
    with pytest.raises(BadInput, match="no probe of pairwise combine"):
        model.predict(PhaseLoad(("pairwise", "combine"), (np.ones((8, 8)),)), LINKS)


def test_labels_go_with_dispatch_and_rows_come_back() -> None:
    """Two ranks, one hop: 3 rows and 5 labels from 0 to 1 of 100 bytes a row; combine carries the rows from 1 to 0."""
    hop = HopTraffic(np.array([[0, 3], [0, 0]]), np.array([[0, 5], [0, 0]]))
    assert phase_bytes([hop], 100, "dispatch")[0].tolist() == [[0, 300 + 5 * LABEL_BYTES], [0, 0]]
    assert phase_bytes([hop], 100, "combine")[0].tolist() == [[0, 0], [300, 0]]


def test_patterns_are_permutations_without_shared_links() -> None:
    patterns = flow_patterns(LINKS.cluster.domain_of_rank, LINKS.cluster.rail_of_rank)
    assert [1, 0, 3, 2, 5, 4, 7, 6] in patterns
    assert [2, 3, 4, 5, 6, 7, 0, 1] in patterns
    for pattern in patterns:
        assert sorted(pattern) == list(range(8))
        flows_L = LINKS.bytes_L(flow_bytes(pattern, 1))
        assert flows_L.max() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["nvlink", "nic"])
def test_a_link_slowed_to_a_quarter_is_named_and_no_other(kind: str) -> None:
    """Every flow that crosses it takes four times as long; its neighbours carry other flows at full rate."""
    patterns = flow_patterns(LINKS.cluster.domain_of_rank, LINKS.cluster.rail_of_rank)
    used_L = sum(LINKS.bytes_L(flow_bytes(pattern, 1)) for pattern in patterns)
    slowed = next(i for i, k in enumerate(LINKS.cluster.link_kinds) if k == kind and used_L[i])
    slow_L = np.where(np.arange(LINKS.cluster.num_links) == slowed, 4.0, 1.0)
    us_PR = np.full((len(patterns), 8), np.nan)
    for i, pattern in enumerate(patterns):
        for src, dst in enumerate(pattern):
            if src != dst:
                alone = np.zeros((8, 8))
                alone[src, dst] = 1e9
                us_PR[i, dst] = (nominal_us_L(LINKS, alone, 1.0) * slow_L).max() / 0.95 + 20
    found = slow_links(patterns, us_PR, 10**9, LINKS, 1.0)
    names = [slow.link for slow in found]
    assert LINKS.names[slowed] in names
    if kind == "nic":  # of NVLink, two ranks in a domain have only one flow each way, so both ends are named
        assert names == [LINKS.names[slowed]]
    assert found[0].reached < 0.3 < found[0].usual
