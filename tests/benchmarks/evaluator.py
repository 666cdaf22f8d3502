"""The rows of docs/quality.md once more, from plan.json as it lies there and the definitions in README and issue.

Shared with the planner are inputs only: which links a pair of ranks crosses, the sampled tokens, constants, the model.

Shapes: D source domains, E experts, R ranks, P tokens, K experts a token, N links.
"""

import json

import numpy as np

from planner import load_plan
from planner.timing import load_profile
from tests.planner.coherent_loops import coherent_times
from topologies import rail_peers, routes

PROFILE = load_profile("vendor")


def shares_of_plan(path, row):
    """share_DER of a layer of a plan.json: equal among the slots of an expert where none is listed."""
    document = json.loads(path.read_text())
    domains = [rank["domain"] for rank in document["cluster"]["ranks"]]
    layer = document["layers"][row]
    share = shares_of_slots(layer["slots"], document["model"]["experts"], max(domains) + 1)
    for expert, copies in layer.get("shares", {}).items():
        share[:, int(expert)] = 0.0
        for copy in copies:
            share[:, int(expert), copy["rank"]] = copy["share"]
    return share


def shares_of_slots(slots, experts, domains):
    """Every slot of an expert serves an equal share, two on one rank both."""
    copies = np.zeros((experts, len(slots)))
    for rank, held in enumerate(slots):
        for expert in held:
            copies[expert, rank] += 1
    return np.tile(copies / copies.sum(axis=1, keepdims=True), (domains, 1, 1))


def layer_us(workload, row, share_DER, slots, exchange):
    """The three phases of a layer; `slots[rank]` lists experts, one twice if it is held twice."""
    cluster, model, tokens = workload.cluster, workload.model, workload.tokens_per_rank
    counts_E = workload.routing.counts[row].sum(axis=0)
    ids_PK = workload.tokens_LPK[row]
    top_k = (ids_PK >= 0).sum() / len(ids_PK)
    pairs_E = counts_E / counts_E.sum() * tokens * top_k
    domain_R = np.asarray(cluster.domain_of_rank)
    pairs_RR = np.einsum("e,ser->sr", pairs_E, share_DER[domain_R])
    rows_RR = pairs_RR
    if exchange != "pairwise":
        # the sample's own mean of experts a token, so that its tokens are as many as the step's
        rows_RR = tokens * distinct_rows(share_DER, ids_PK, domain_R, cluster.rail_of_rank, exchange)
    per_peer = rows_per_peer(tokens, top_k, cluster, exchange)
    times = []
    for row_bytes, back in ((model.dispatch_row_bytes, False), (model.combine_row_bytes, True)):
        regime = PROFILE.regime(per_peer * row_bytes)
        alpha = regime.alpha_intra_us if cluster.num_domains == 1 else regime.alpha_inter_us
        if exchange == "two-level" and cluster.num_domains > 1:
            alpha += regime.alpha_intra_us
        load_N = (rows_RR.T if back else rows_RR).ravel() @ routes(cluster)
        speed_N = [regime.efficiency.get(link.kind, 1.0) * link.gbps * 1e3 for link in cluster.links]
        times.append(alpha + (load_N * row_bytes / np.array(speed_N)).max())
    return times[0] + compute_us(workload, pairs_E, pairs_RR.sum(axis=0), share_DER, slots) + times[1]


def coherent_us(workload, path):
    """The time of every layer of a plan under the coherent exchange, the last one with the gather; the faster way."""
    return min((coherent_way_us(workload, path, way) for way in ("dedup", "two-level")), key=sum)


def coherent_way_us(workload, path, way):
    document, scale = json.loads(path.read_text()), workload.tokens_per_rank * workload.num_ranks
    times, found = coherent_times(workload, load_plan(path).placements(), way), []
    for row, (dispatch_us, combine_us, load_R) in enumerate(times):
        counts_E = np.bincount(workload.routing.trace[row].ravel(), minlength=workload.num_experts)
        pairs_E = counts_E * scale / workload.routing.num_tokens / workload.num_ranks
        slots = document["layers"][row]["slots"]
        found.append(dispatch_us + combine_us + compute_us(workload, pairs_E, load_R, shares_of_plan(path, row), slots))
    return found


def distinct_rows(share_DER, ids_PK, domain_R, rail_R, exchange):
    """Rows per token between ranks: a token visits a target unless it misses it with each of its experts."""
    R, D = len(domain_R), len(share_DER)
    peers_RD = rail_peers(domain_R, rail_R)
    rows = np.zeros((R, R))
    for d in range(D):
        by_rank = visited(share_DER[d], ids_PK)
        by_domain = visited(np.stack([share_DER[d][:, domain_R == t].sum(axis=1) for t in range(D)], axis=1), ids_PK)
        for src in np.flatnonzero(domain_R == d):
            if exchange == "dedup":
                rows[src] = by_rank
                continue
            for t in range(D):
                rows[src, peers_RD[src, t]] += by_domain[t]
                rows[peers_RD[src, t], domain_R == t] += by_rank[domain_R == t]
    return rows


def visited(share_ET, ids_PK):
    """The mean over tokens of the chance that at least one of their experts is served by each target."""
    miss_PT = np.ones((len(ids_PK), share_ET.shape[1]))
    for k in range(ids_PK.shape[1]):
        here = ids_PK[:, k] >= 0
        miss_PT[here] *= 1 - np.minimum(share_ET[ids_PK[here, k]], 1.0)
    return 1 - miss_PT.mean(axis=0)


def rows_per_peer(tokens, top_k, cluster, exchange):
    if exchange == "pairwise":
        return tokens * top_k / cluster.num_ranks
    peers = cluster.num_ranks if exchange == "dedup" else cluster.num_domains
    return tokens * (1 - (1 - 1 / peers) ** top_k) if peers > 1 else tokens


def compute_us(workload, pairs_E, load_R, share_DER, slots):
    constants, model, cluster = PROFILE.compute, workload.model, workload.cluster
    active_E = 1 - np.exp(-pairs_E * cluster.num_ranks)
    worst = 0.0
    for rank, gpu in enumerate(cluster.gpus):
        row_us = model.flops_per_row / (constants.flop_efficiency * gpu.peak_tflops[model.dispatch_dtype] * 1e6)
        slot_us = model.expert_bytes / (constants.hbm_efficiency * gpu.hbm_gbps * 1e3) + constants.half_rows * row_us
        active = sum(active_E[e] for e in slots[rank] if share_DER[:, e, rank].max() > 0)
        worst = max(worst, constants.launch_us + slot_us * active + row_us * load_R[rank])
    return worst
