"""The choice of one option a layer, against every combination."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solve.options import Option, choose, worthwhile
from topologies import Infeasible

OPTIONS = st.lists(
    st.lists(st.builds(Option, st.none(), st.integers(0, 20).map(float), st.integers(0, 6)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def cost(combination, price):
    return sum(option.objective + price * option.moves for option in combination)


@given(OPTIONS, st.integers(0, 24), st.sampled_from([0.0, 0.5, 3.0]))
def test_equals_every_combination_tried(layers, limit, price):
    allowed = [one for one in itertools.product(*layers) if sum(option.moves for option in one) <= limit]
    if not allowed:
        fewest = sum(min(option.moves for option in layer) for layer in layers)
        with pytest.raises(Infeasible, match=f"nearest feasible: --max-moves {fewest}"):
            choose(layers, price, limit)
        return
    chosen = choose(layers, price, limit)
    assert all(option in layer for option, layer in zip(chosen, layers, strict=True))
    assert sum(option.moves for option in chosen) <= limit
    assert cost(chosen, price) == pytest.approx(min(cost(one, price) for one in allowed))
    assert cost(choose(layers, price), price) == pytest.approx(
        min(cost(one, price) for one in itertools.product(*layers))
    )


@given(OPTIONS, st.integers(0, 24))
def test_what_is_not_worthwhile_is_never_missed(layers, limit):
    kept = [worthwhile(layer) for layer in layers]
    try:
        best = cost(choose(layers, 0.0, limit), 0.0)
    except Infeasible:
        return
    assert cost(choose(kept, 0.0, limit), 0.0) == pytest.approx(best)
