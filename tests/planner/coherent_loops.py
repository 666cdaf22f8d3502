"""The coherent exchange in plain loops over tokens and layers: the independent answer that tests compare with.

Shared with the planner are inputs only: the copies that a source rank chooses (`planner.replica_choice`, tested for
itself), routes of single rank pairs, the profile's constants, the model.
"""

from collections import Counter

import numpy as np

from planner.replica_choice import choose_slots
from tests.planner.definitions import PROFILE, link_us
from topologies import rail_peers


def by_loops(workload, placements, way):
    """Rows of every hop, token by token; `rows[kind][layer][src, dst]`, loads, and where tokens end."""
    domain_R, ranks_in_all, tokens = workload.cluster.domain_of_rank, workload.num_ranks, workload.routing.num_tokens
    domain, peers = domain_R, rail_peers(domain_R, workload.cluster.rail_of_rank)
    if way == "dedup":  # every rank is a domain of its own, and its own forwarder
        domain, peers = np.arange(ranks_in_all), np.tile(np.arange(ranks_in_all), (ranks_in_all, 1))
    at, layers = [token * ranks_in_all // tokens for token in range(tokens)], []
    for placement, ids in zip(placements, workload.routing.trace, strict=True):
        moved, sent, back, load, after = Counter(), Counter(), Counter(), Counter(), list(at)
        for token, ranks in ranks_of_tokens(placement, ids, at, domain_R).items():
            load.update(ranks)
            if not ranks:
                continue
            src, stay = at[token], ranks[0]
            after[token] = stay
            moved[src, int(peers[src, domain[stay]])] += 1
            moved[int(peers[src, domain[stay]]), stay] += 1
            for d in {domain[rank] for rank in ranks} - {domain[stay]}:
                sent[src, int(peers[src, d])] += 1
            for rank in set(ranks) - {stay}:
                sent[int(peers[src, domain[rank]]), rank] += 1
                back[rank, int(peers[stay, domain[rank]])] += 1
            for d in {domain[rank] for rank in set(ranks) - {stay}}:
                back[int(peers[stay, d]), stay] += 1
        at = after
        layers.append((moved, sent, back, load, list(at)))
    return layers, gathered(at, domain_R, rail_peers(domain_R, workload.cluster.rail_of_rank))


def ranks_of_tokens(placement, ids, at, domain_R):
    """The ranks that serve each token: copies as a source rank chooses them, over its tokens in order."""
    found = {}
    for source in set(at):
        mine = [token for token, rank in enumerate(at) if rank == source]
        slots = choose_slots(placement, ids[mine].astype(np.int64), source, int(domain_R[source]))
        for token, row in zip(mine, slots, strict=True):
            found[token] = [int(placement.rank_S[slot]) for slot in row if slot >= 0]
    return found


def gathered(at, domain, peers):
    """Every token to every rank, whichever way the other rows go: once to each domain, forwarded inside."""
    gather = Counter()
    for src in at:
        for d in set(domain.tolist()):
            gather[src, int(peers[src, d])] += 1
        for rank in range(len(domain)):
            gather[int(peers[src, domain[rank]]), rank] += 1
    return gather


def coherent_times(workload, placements, way):
    """(dispatch us, combine us, token-expert pairs of every rank) of each layer; the last combine with the gather."""
    cluster, model, tokens = workload.cluster, workload.model, workload.tokens_per_rank
    layers, gather = by_loops(workload, placements, way)
    times = cluster.num_ranks * tokens / workload.routing.num_tokens
    top_k = (workload.routing.trace >= 0).mean() * workload.routing.trace.shape[2]
    peers = cluster.num_ranks if way == "dedup" else cluster.num_domains
    peer_rows = tokens * (1 - (1 - 1 / peers) ** top_k) if peers > 1 else tokens

    def exchange_us(message_bytes, *parts):
        regime = PROFILE.regime(peer_rows * message_bytes)
        us = sum(
            link_us(cluster, rows, times * size, False, {"local": 1.0, **regime.efficiency}) for rows, size in parts
        )
        inside = cluster.num_domains == 1 or way == "two-level"
        between = cluster.num_domains > 1
        return inside * regime.alpha_intra_us + between * regime.alpha_inter_us + us.max()

    out, back, found = model.dispatch_row_bytes, model.combine_row_bytes, []
    for moved, sent, partial, load, _ in layers:
        dispatch_us = exchange_us(out, (moved, back), (sent, out))
        pairs_R = [times * load[rank] for rank in range(cluster.num_ranks)]
        found.append([dispatch_us, exchange_us(back, (partial, back)), pairs_R])
    found[-1][1] += exchange_us(back, (gather, back))
    return found
