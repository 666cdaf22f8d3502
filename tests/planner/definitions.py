"""The cost of a layer worked out from the definitions in plain loops: the independent answer that tests compare with.

Nothing here is shared with the planner but the inputs: routes of single rank pairs, the profile's constants, the model.
"""

import itertools
from collections import defaultdict

import numpy as np
from scipy.optimize import linprog

from planner.model import MoEModel
from planner.routing import Routing
from planner.timing import load_profile
from topologies import Cluster, load_cluster, rail_peers, routes

PROFILE = load_profile("vendor")


def tiny_model(experts, top_k=2, groups=1, top_groups=1, hidden=4096):
    return MoEModel(
        name="tiny", experts=experts, top_k=top_k, hidden=hidden, intermediate=1024, groups=groups,
        top_groups=top_groups, num_layers=1, moe_layers=(0,),
    )  # fmt: skip


def tiny_cluster(ranks=4, hosts=2):
    """`ranks` GPUs spread over the first `hosts` H100 hosts, same rails on each."""
    each = ranks // hosts
    return load_cluster(f"hgx-h100:{hosts}").subset([8 * host + gpu for host in range(hosts) for gpu in range(each)])


def routing_of(counts, trace=None):
    counts = np.asarray(counts, dtype=float)
    counts = counts.reshape(1, -1, counts.shape[-1])
    return Routing(layers=(0,), counts=counts, trace=trace, name="made")


def mean_over(workload):
    """Rows of each rank to each expert, [R, E]."""
    return workload.rows_LCE[0][workload.class_of_rank_R]


def link_us(cluster: Cluster, rows, row_bytes, back, efficiency):
    """Time of every link when `rows[src, dst]` rows travel; `back` sends them from dst to src."""
    route = routes(cluster)
    load = np.zeros(len(cluster.links))
    for (src, dst), count in rows.items():
        pair = dst * cluster.num_ranks + src if back else src * cluster.num_ranks + dst
        for link in range(route.indptr[pair], route.indptr[pair + 1]):
            load[route.indices[link]] += count * route.data[link] * row_bytes
    return np.array(
        [byte / (efficiency[link.kind] * link.gbps * 1000) for byte, link in zip(load, cluster.links, strict=True)]
    )


def pair_rows(workload, placement):
    """Rows between ranks for `pairwise`, and the load of every rank."""
    rows, load = defaultdict(float), np.zeros(workload.num_ranks)
    per_rank = mean_over(workload)
    domain = workload.cluster.domain_of_rank
    for slot, (expert, rank) in enumerate(zip(placement.expert_S, placement.rank_S, strict=True)):
        for src in range(workload.num_ranks):
            share = placement.share_DS[domain[src], slot]
            rows[src, int(rank)] += per_rank[src, expert] * share
            load[rank] += per_rank[src, expert] * share
    return rows, load


def choices(token, placement, source_domain):
    """Every way in which a token's experts pick their copies: (probability, ranks)."""
    options = []
    for expert in token:
        slots = [s for s in range(len(placement.expert_S)) if placement.expert_S[s] == expert]
        options.append([(placement.share_DS[source_domain, s], int(placement.rank_S[s])) for s in slots])
    for picked in itertools.product(*options):
        probability = float(np.prod([share for share, _ in picked]))
        if probability > 0:
            yield probability, [rank for _, rank in picked]


def distinct_rows(workload, placement, exchange):
    """Expected rows between ranks for `dedup` and `two-level`, token by token."""
    cluster = workload.cluster
    domain, peers = cluster.domain_of_rank, rail_peers(cluster.domain_of_rank, cluster.rail_of_rank)
    tokens = [[int(e) for e in token if e >= 0] for token in workload.tokens_LPK[0]]
    pairs_per_token = sum(map(len, tokens)) / len(tokens)
    rows = defaultdict(float)
    for src in range(workload.num_ranks):
        weight = mean_over(workload)[src].sum() / pairs_per_token / len(tokens)
        for token in tokens:
            for probability, ranks in choices(token, placement, domain[src]):
                for leg in legs_of(src, set(ranks), exchange, domain, peers):
                    rows[leg] += weight * probability
    return rows


def legs_of(src, ranks, exchange, domain, peers):
    if exchange == "dedup":
        return [(src, rank) for rank in ranks]
    out = [(src, int(peers[src, d])) for d in {domain[rank] for rank in ranks}]
    return out + [(int(peers[src, domain[rank]]), rank) for rank in ranks]


def layer_us(workload, placement, exchange="pairwise"):
    """Dispatch, compute and combine time of the layer, from the definitions."""
    cluster, model = workload.cluster, workload.model
    rows, load = pair_rows(workload, placement)
    if exchange != "pairwise":
        rows = distinct_rows(workload, placement, exchange)
    per_peer = peer_rows(workload, exchange)
    times = []
    for row_bytes, back in ((model.dispatch_row_bytes, False), (model.combine_row_bytes, True)):
        regime = PROFILE.regime(per_peer * row_bytes)
        alpha = regime.alpha_intra_us if cluster.num_domains == 1 else regime.alpha_inter_us
        if exchange == "two-level" and cluster.num_domains > 1:
            alpha += regime.alpha_intra_us
        times.append(alpha + link_us(cluster, rows, row_bytes, back, regime.efficiency).max())
    return times[0], compute_us(workload, placement, load), times[1]


def peer_rows(workload, exchange):
    tokens, ranks, domains = workload.tokens_per_rank, workload.num_ranks, workload.num_domains
    top_k = mean_over(workload).sum() / ranks / tokens
    if exchange == "pairwise":
        return tokens * top_k / ranks
    peers = ranks if exchange == "dedup" else domains
    return tokens * (1 - (1 - 1 / peers) ** top_k) if peers > 1 else tokens


def compute_us(workload, placement, load):
    constants, model = PROFILE.compute, workload.model
    total = mean_over(workload).sum(axis=0)
    times = []
    for rank, gpu in enumerate(workload.cluster.gpus):
        row_us = model.flops_per_row / (constants.flop_efficiency * gpu.peak_tflops["bf16"] * 1e6)
        slot_us = model.expert_bytes / (constants.hbm_efficiency * gpu.hbm_gbps * 1e3) + constants.half_rows * row_us
        active = sum(
            1 - np.exp(-total[e])
            for s, (e, g) in enumerate(zip(placement.expert_S, placement.rank_S, strict=True))
            if g == rank and placement.share_DS[:, s].max() > 0
        )
        times.append(constants.launch_us + slot_us * active + row_us * load[rank])
    return max(times)


def all_placements(experts, ranks, slots):
    """Every choice of at most `slots` experts for each rank that covers all experts."""
    subsets = [s for size in range(slots + 1) for s in itertools.combinations(range(experts), size)]
    for held in itertools.product(subsets, repeat=ranks):
        if len(set().union(*held)) == experts:
            yield held


def best_by_lp(workload, held, *, balance=False):
    """Least pairwise time (or imbalance) over all shares for fixed slots: a flat LP on (source rank, expert, rank).

    One share per source domain, as plan.json has it.
    """
    model, R, D = workload.model, workload.num_ranks, workload.num_domains
    columns = {(d, e, g): i for i, (d, g, e) in enumerate(
        (d, g, e) for d in range(D) for g in range(R) for e in held[g])}  # fmt: skip
    n = len(columns)
    rows, rhs = [], []
    for phase, (matrix, base) in enumerate(_phases(workload, held, columns, balance=balance)):
        for line, constant in zip(matrix, base, strict=True):
            time = np.zeros(3)
            time[phase] = -1
            rows.append(np.concatenate([line, time]))
            rhs.append(-constant)
    sums = np.zeros((D * model.experts, n + 3))
    for (d, e, _), i in columns.items():
        sums[d * model.experts + e, i] = 1
    result = linprog(
        np.concatenate([np.zeros(n), np.ones(3)]), np.array(rows), rhs, sums, np.ones(len(sums)), (0, None)
    )
    return result.fun


def _phases(workload, held, columns, *, balance):
    cluster, model, R, n = workload.cluster, workload.model, workload.num_ranks, len(columns)
    domain, per_rank = cluster.domain_of_rank, mean_over(workload)
    total = per_rank.sum(axis=0)
    load = np.zeros((R, n))
    for (d, e, g), i in columns.items():
        load[g, i] = sum(per_rank[src, e] for src in range(R) if domain[src] == d)
    if balance:
        yield load * R / total.sum(), np.zeros(R)
        return
    route = routes(cluster).toarray()
    for row_bytes, back in ((model.dispatch_row_bytes, False), (model.combine_row_bytes, True)):
        regime = PROFILE.regime(peer_rows(workload, "pairwise") * row_bytes)
        alpha = regime.alpha_intra_us if cluster.num_domains == 1 else regime.alpha_inter_us
        us = np.zeros((len(cluster.links), n))
        for (d, e, g), i in columns.items():
            for src in (src for src in range(R) if domain[src] == d):
                pair = g * R + src if back else src * R + g
                us[:, i] += per_rank[src, e] * row_bytes * route[pair]
        speed = np.array([regime.efficiency[link.kind] * link.gbps * 1000 for link in cluster.links])
        yield us / speed[:, None], np.full(len(cluster.links), alpha)
    constants, gpu = PROFILE.compute, cluster.gpus[0]
    row_us = model.flops_per_row / (constants.flop_efficiency * gpu.peak_tflops["bf16"] * 1e6)
    slot_us = model.expert_bytes / (constants.hbm_efficiency * gpu.hbm_gbps * 1e3) + constants.half_rows * row_us
    active = np.array([sum(1 - np.exp(-total[e]) for e in held[g]) for g in range(R)])
    yield load * row_us, constants.launch_us + slot_us * active
