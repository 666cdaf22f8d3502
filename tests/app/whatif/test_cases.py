"""Cases against the command line: the same inputs give the same numbers; keys are those of the content."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from app.main import cli
from app.whatif.cases import holding_all, make_case
from app.whatif.settings import POWER_LAW, Settings
from app.whatif.uploads import Uploads
from topologies import BadInput

NONE = Uploads()
LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:2", tokens=256.0)


def test_the_bundled_case_is_that_of_the_command_line():
    case = make_case(Settings(), NONE)
    mine = case.fast_plan(case.workload())
    theirs = json.loads(CliRunner().invoke(cli, ["plan", "--time-limit", "0", "--json"], catch_exceptions=False).stdout)
    assert [one["name"] for one in theirs["plans"]] == [one.name for one in mine.predictions]
    np.testing.assert_allclose(
        [one["total_us"] for one in theirs["plans"]], [one.total_us for one in mine.predictions], rtol=1e-12
    )


def test_keys_are_equal_exactly_where_the_content_is():
    one, same = make_case(LITE, NONE), make_case(LITE.but(), Uploads())
    assert (one.key, one.workload_key, one.sample_key) == (same.key, same.workload_key, same.sample_key)
    for change in ({"tokens": 128.0}, {"nic_gbps": 100.0}, {"lost": ("host1",)}, {"slow_rank": 3}):
        other = make_case(LITE.but(**change, slots=8), NONE)
        assert other.workload_key != one.workload_key, change
        assert other.sample_key == one.sample_key, change
    for change in ({"slots": 6}, {"exchange": "dedup"}, {"profile": "h200"}, {"objective": "balance"}):
        other = make_case(LITE.but(**change), NONE)
        assert other.key != one.key, change
        assert other.workload_key == one.workload_key, change
    for change in ({"skew": 0.7}, {"seed": 1}, {"power": 2.0}):
        assert make_case(LITE.but(**change), NONE).sample_key != one.sample_key, change


def test_memory_decides_the_slots():
    case = make_case(LITE.but(weights_gb=5.0), NONE)
    each = case.routing.num_layers * case.model.expert_bytes
    assert case.slots_per_rank == int(5e9 // each)
    assert case.slots_per_rank * each <= 5e9 < (case.slots_per_rank + 1) * each


def test_memory_for_no_slot_says_what_one_takes():
    case = make_case(LITE.but(weights_gb=0.1), NONE)
    slot_gb = case.routing.num_layers * case.model.expert_bytes / 1e9
    with pytest.raises(BadInput, match=rf"0\.1 GB .* hold no slot: .* takes {slot_gb:.3g} GB"):
        case.slots_R()


def test_slots_are_raised_to_hold_every_expert_and_it_is_said():
    case = make_case(LITE.but(slots=4, lost=("host1",)), NONE)
    raised, said = holding_all(case, NONE)
    assert raised.slots_per_rank == 8
    assert said == ("4 slots x 8 ranks hold fewer than the 64 experts: taken with 8 slots per rank, the fewest that do")
    assert holding_all(raised, NONE) == (raised, "")


def test_faults_reach_the_cluster():
    case = make_case(LITE.but(lost=("host0/gpu1", "host1/nic3"), slow_rank=2, slow_speed=0.5), NONE)
    assert case.cluster.num_ranks == 15
    assert case.cluster.name == "hgx-h100:2 without host0/gpu1,host1/nic3"
    assert [rank.speed for rank in case.cluster.ranks][:4] == [1.0, 1.0, 0.5, 1.0]
    assert case.whole.num_hosts == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cluster": "hgx-h1000:4"}, "unknown cluster 'hgx-h1000'"),
        ({"cluster": "hgx-h100:100"}, "over the 288 that the app plans"),
        ({"cluster": "hgx-h100:1250"}, "take fewer hosts, or `epplan plan`, which goes up to 2,048"),
        ({"model": "gpt-5"}, "unknown model 'gpt-5'"),
        ({"routing": "bundled"}, "the bundled trace is of the bundled model"),
        ({"routing": "magic"}, "it is bundled, power-law, or an uploaded file"),
        ({"profile": "tpu"}, "unknown profile 'tpu'"),
        ({"slow_rank": 16}, "the ranks are 0 to 15"),
        ({"lost": ("host7",)}, "has hosts 0 to 1"),
        ({"lost": ("host0", "host1")}, "no rank is left"),
    ],
)
def test_what_cannot_be_is_one_line(change, said):
    with pytest.raises(BadInput) as caught:
        make_case(LITE.but(**change), NONE)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
