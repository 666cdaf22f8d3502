"""One of 4 ranks is killed, or stalls, at every point of a step: the others end in time and name it, a restart resumes.

The job of `job.py` saves after steps 1, 3, 5 and migrates before step 3. A fault at step 2 or 3 leaves `step-2`; what
is loaded again from there gives the losses that a job without faults gives, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.executor.faults.job import CULPRIT, RANKS, SLACK_S, TIMEOUT_S, Fault, run_job, train

STEPS = 6
QUICK = [Fault("kill", call="migration", step=3), Fault("stall", mark="dispatched")]
KILLS = [
    Fault("kill", mark="routed"),
    Fault("kill", mark="start"),
    Fault("kill", call="dispatch"),
    Fault("kill", mark="dispatched"),
    Fault("kill", mark="computed"),
    Fault("kill", call="combine"),
    Fault("kill", mark="backward combined"),
    Fault("kill", call="combine (backward)"),
    Fault("kill", mark="backward computed"),
    Fault("kill", call="dispatch (backward)"),
    Fault("kill", mark="backward routed"),
    Fault("kill", call="replica gradients"),
    Fault("kill", call="check of the next plan", step=3),
    Fault("kill", call="checkpoint begins", step=3),
    Fault("kill", call="checkpoint ends", step=3),
    Fault("kill", call="check of layouts", step=3),
]
STALLS = [
    pytest.param(Fault("stall", call="combine"), marks=pytest.mark.slow),
    pytest.param(Fault("stall", call="migration", step=3), marks=pytest.mark.slow),
    pytest.param(Fault("stall", call="checkpoint begins"), marks=pytest.mark.slow),
]


def name_of(fault: Fault) -> str:
    return f"{fault.how} in {fault.mark or fault.call}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, float]]:
    ends = run_job(tmp_path_factory.mktemp("undisturbed"), train, None, STEPS)
    assert [end.said for end in ends] == [""] * RANKS
    return [end.losses for end in ends]


@pytest.mark.parametrize(
    "fault", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in KILLS), *STALLS], ids=name_of
)
def test_the_others_name_it_and_a_restart_resumes(
    fault: Fault, tmp_path: Path, undisturbed: list[dict[int, float]]
) -> None:
    ends = run_job(tmp_path, train, fault, STEPS, stalls=fault.how == "stall")
    assert ends[CULPRIT].code == -9
    for rank in set(range(RANKS)) - {CULPRIT}:
        assert ends[rank].code == 1
        assert ends[rank].said.startswith("RankLost"), ends[rank].said
        assert f"rank {CULPRIT} of {RANKS}" in ends[rank].said
        wanted = "no sign of life" if fault.how == "kill" else "outside any exchange for"
        assert wanted in ends[rank].said
        assert ends[rank].seconds < TIMEOUT_S + SLACK_S
    folders = sorted(path.name for path in tmp_path.glob("step-*") if path.suffix != ".partial")
    assert folders[:1] == ["step-2"], "written whole, and before the fault"
    again = run_job(tmp_path, train, None, STEPS)
    assert [end.said for end in again] == [""] * RANKS
    first = 2 * len(folders)
    for end, wanted_of_rank in zip(again, undisturbed, strict=True):
        assert end.losses == {step: loss for step, loss in wanted_of_rank.items() if step >= first}
