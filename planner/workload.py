"""One step of a model on a cluster: how many rows each source sends to each expert, and which experts go together.

Shapes: L layers, C source classes, E experts, R ranks, D domains, P sampled tokens, K experts a token (top-k).
A source class is a set of ranks that send alike: the ranks of a domain where the statistics do not name the source,
single ranks where they do.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.model import MoEModel
from planner.placement import FloatArray, IntArray
from planner.routing import Routing
from planner.sampling import sample_tokens
from topologies import BadInput, Cluster

SAMPLED_TOKENS = 1024  # tokens per layer that stand for the step where rows are counted by distinct destination
MIN_SAMPLED_TOKENS = 256  # for each source class, where the statistics tell sources apart
DEFAULT_TOKENS_PER_RANK = 4096  # a prefill step, where plain counts come without a number of tokens
MAX_RANKS = 2048  # of an EP group: its transfers, and what they take, grow with the square; 6 GB there (measured)
USUAL_RANKS = 256  # of a large EP group
MAX_TRACE_TOKENS = 16384  # a longer trace is thinned evenly to this for counting distinct destinations


@dataclass(frozen=True, eq=False)
class Workload:
    """Rows and co-activation of every layer, for one step of `tokens_per_rank` tokens on every rank.

    Attributes:
        layers: index in the model of each of the L rows.
        tokens_per_rank: tokens of every rank in a step (the mean over ranks where the statistics name the source).
        class_of_rank_R: source class of each rank.
        rows_LCE: token-expert pairs that one rank of class c sends to expert e in a step.
        routing: the statistics behind it.
        seed: of the tokens that are sampled where there is no trace.

    """

    model: MoEModel
    cluster: Cluster
    layers: tuple[int, ...]
    tokens_per_rank: float
    class_of_rank_R: IntArray
    rows_LCE: FloatArray
    routing: Routing
    seed: int

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.cluster.num_ranks

    @property
    def num_experts(self) -> int:
        """E."""
        return self.model.experts

    @property
    def num_domains(self) -> int:
        """D."""
        return self.cluster.num_domains

    @property
    def class_size_C(self) -> IntArray:
        """Return the number of ranks in each source class."""
        return np.bincount(self.class_of_rank_R)

    @property
    def class_domain_C(self) -> IntArray:
        """Return the domain in which each source class lies."""
        _, first_C = np.unique(self.class_of_rank_R, return_index=True)
        domain_C: IntArray = np.asarray(self.cluster.domain_of_rank)[first_C]
        return domain_C

    @property
    def load_LE(self) -> FloatArray:
        """Return the token-expert pairs of each expert in a step, over all ranks."""
        load_LE: FloatArray = np.einsum("lce,c->le", self.rows_LCE, self.class_size_C)
        return load_LE

    @cached_property
    def token_class_P(self) -> IntArray | None:
        """Return the source class of each token of `tokens_LPK`, or None where each of them stands for all classes."""
        if self.routing.counts.shape[1] == 1:
            return None
        if self.routing.trace is not None and self.routing.token_source is not None:
            return np.asarray(self.routing.token_source, dtype=np.int64)[self._kept_tokens]
        return self.sampler(0).class_P(SAMPLED_TOKENS)

    @cached_property
    def tokens_LPK(self) -> IntArray:
        """Return the experts of P tokens of each layer, -1 where masked: traced, or sampled from the marginals.

        Predictions count rows over these. The sample reproduces the marginals and the group limit of the router (see
        `planner.sampling`).
        """
        if self.routing.trace is not None:
            return self.routing.trace[:, self._kept_tokens].astype(np.int64)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy shuffles and sorts without the GIL
            draws = pool.map(lambda row: self.sampler(row).draw(SAMPLED_TOKENS, self.seed), range(self.num_layers))
            return np.stack(list(draws))

    def sampler(self, row: int) -> TokenSampler:
        """Return what draws tokens of row `row` (0..L-1), for statistics without a trace.

        From the counts themselves: scaled to a step they would round otherwise, and draw other tokens.
        """
        return TokenSampler(self.routing.counts[row], row, self.model.top_k, self.model.groups, self.model.top_groups)

    @cached_property
    def _kept_tokens(self) -> IntArray:
        assert self.routing.trace is not None
        tokens = self.routing.trace.shape[1]
        return np.unique(np.linspace(0, tokens - 1, min(tokens, MAX_TRACE_TOKENS)).round().astype(np.int64))


@dataclass(frozen=True, eq=False)
class TokenSampler:
    """Draws tokens of one layer from its marginals.

    Attributes:
        rates_XE: counts of each source class for each expert; a single row where all classes send alike.
        row: of the layer, so that layers draw differently under one seed.
        top_k, groups, top_groups: of the router.

    """

    rates_XE: FloatArray
    row: int
    top_k: int
    groups: int
    top_groups: int

    def draw(self, tokens: int, seed: int) -> IntArray:
        """Return the experts [P, K] of about `tokens` tokens, one source class after the other."""
        parts = []
        for x, rates_E in enumerate(self.rates_XE):
            own_seed = int(np.random.SeedSequence([abs(seed), seed < 0, self.row, x]).generate_state(1)[0])
            weight_E = rates_E if rates_E.any() else np.ones_like(rates_E)  # an idle class: its tokens weigh nothing
            parts.append(
                sample_tokens(
                    weight_E[None] / weight_E.sum(),
                    self.top_k,
                    self.groups,
                    self.top_groups,
                    self._each(tokens),
                    own_seed,
                )[0]
            )
        return np.concatenate(parts).astype(np.int64)

    def class_P(self, tokens: int) -> IntArray | None:
        """Return the source class of each token that `draw` returns, or None where each stands for all classes."""
        if len(self.rates_XE) == 1:
            return None
        return np.repeat(np.arange(len(self.rates_XE)), self._each(tokens))

    def _each(self, tokens: int) -> int:
        return tokens if len(self.rates_XE) == 1 else max(tokens // len(self.rates_XE), MIN_SAMPLED_TOKENS)


def build_workload(
    model: MoEModel, cluster: Cluster, routing: Routing, tokens_per_rank: float | None = None, seed: int = 0
) -> Workload:
    """Scale routing statistics to a step of `tokens_per_rank` tokens on every rank of the cluster.

    Without `tokens_per_rank`, a trace is the step (its tokens spread evenly over the ranks) and plain counts are taken
    as `DEFAULT_TOKENS_PER_RANK` tokens a rank. Raises BadInput where the statistics do not fit the model or the
    cluster, or the cluster is too large for one EP group.
    """
    _check_size(cluster)
    if routing.num_experts != model.experts:
        raise BadInput(
            f"{routing.name}: counts of {routing.num_experts} experts, but model {model.name} has {model.experts}"
        )
    pairs_per_token = float(model.top_k)
    if routing.trace is not None:
        pairs_per_token = (routing.trace >= 0).sum() / (routing.trace.shape[0] * routing.trace.shape[1])
        if tokens_per_rank is None:
            tokens_per_rank = routing.trace.shape[1] / cluster.num_ranks
    if tokens_per_rank is None:
        tokens_per_rank = DEFAULT_TOKENS_PER_RANK
    if not (math.isfinite(tokens_per_rank) and tokens_per_rank > 0):
        raise BadInput(f"tokens per rank is {tokens_per_rank}, must be a finite number above 0")
    class_of_rank_R = _source_classes(cluster, routing)
    size_C = np.bincount(class_of_rank_R)
    counts_LSE = routing.counts
    if counts_LSE.shape[1] == 1:  # every rank sends alike
        rows_LCE = np.repeat(counts_LSE / cluster.num_ranks, len(size_C), axis=1)
    else:
        rows_LCE = counts_LSE / size_C[None, :, None]
    total_L = np.einsum("lce,c->l", rows_LCE, size_C)
    rows_LCE = rows_LCE * (tokens_per_rank * pairs_per_token * cluster.num_ranks / total_L)[:, None, None]
    return Workload(model, cluster, routing.layers, tokens_per_rank, class_of_rank_R, rows_LCE, routing, seed)


def _check_size(cluster: Cluster) -> None:
    """Refuse, before memory runs out, what is a cluster of many EP groups rather than a single group."""
    ranks, groups = cluster.num_ranks, cluster.groups.count
    if ranks > MAX_RANKS:
        domains = cluster.num_domains  # groups of whole ones, so that all are alike
        parts = next((n for n in range(-(-ranks // USUAL_RANKS), domains) if domains % n == 0), domains)
        raise BadInput(
            f"{cluster.name}: an EP group of {ranks} ranks, over the limit of {MAX_RANKS}; say how many groups share "
            f"the cluster: --ep-groups {groups * parts} makes them {ranks // parts} ranks each"
        )


def _source_classes(cluster: Cluster, routing: Routing) -> IntArray:
    """Return the source class of each rank: domains where the source is not known, else what the statistics name."""
    sources = routing.counts.shape[1]
    if sources in (1, cluster.num_domains):
        return np.asarray(cluster.domain_of_rank, dtype=np.int64)
    if sources == cluster.num_ranks:
        return np.arange(cluster.num_ranks)
    if sources == cluster.num_hosts:
        return np.asarray(cluster.host_of_rank, dtype=np.int64)
    raise BadInput(
        f"{routing.name}: counts of {sources} sources fit neither the {cluster.num_ranks} ranks, "
        f"the {cluster.num_hosts} hosts nor the {cluster.num_domains} domains of {cluster.name}; "
        "sum the sources into one, or name the cluster that they were recorded on"
    )
