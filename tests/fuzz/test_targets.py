"""Every reader on broken files: an answer, or one line of refusal. The quick part of `python -m tests.fuzz.run`."""

from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from planner.importers import FORMATS
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, check

CORPUS = Path(__file__).with_name("corpus")
FOUND = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
"""Files that once brought out something else, by target."""

SLOW = ("cluster-yaml", "profile", "table", "nvidia-smi", "nccl-xml")
QUICK = settings(
    derandomize=True,  # a fixed sample in CI; the search for more is that of tests.fuzz.run
    deadline=timedelta(seconds=60),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name):
    """What is broken is worth nothing if the whole file is refused; host3 is no cluster of the catalog."""
    refused = [text for text in (check(TARGETS[name], data) for data in TARGETS[name].seeds) if text]
    assert refused == [] or (name == "cluster-name" and len(refused) == 1), refused


def test_every_importer_is_a_target():
    assert {f"import-{name}" for name in FORMATS} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_broken_files(name):
    target = TARGETS[name]
    if not target.seeds:
        pytest.skip("its library is not installed")

    @given(st.integers(0, 2**64 - 1))
    @example(0)
    @settings(QUICK, max_examples=50 if name in SLOW else 200)
    def run(seed):
        rng = Random(seed)
        check(target, mutate(rng.choice(target.seeds), rng, target.shape, target.seeds))

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name):
    @given(st.binary(max_size=300))
    @settings(QUICK, max_examples=50)
    def run(data):
        check(TARGETS[name], data)

    run()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_stays_fixed(path):
    check(TARGETS[path.parent.name], path.read_bytes())


def test_a_mutation_is_a_function_of_its_seed():
    for target in TARGETS.values():
        for data in target.seeds:
            first, again = (mutate(data, Random(7), target.shape, target.seeds) for _ in range(2))
            assert first == again
