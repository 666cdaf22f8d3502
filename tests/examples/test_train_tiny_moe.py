"""The example trains, its trace is a function of the seed, and the bundled traces are what they claim to be."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_tiny_moe.py"
BUNDLED = ROOT / "planner" / "bundled" / "tiny_moe"
LAYERS, TOKENS, EXPERTS, TOP_K = 3, 700, 8, 3
TINY = ["--steps=3", "--batch=1", "--context=1024", "--vocab=258", "--hidden=16", "--heads=2", "--width=4"]
TINY += [f"--layers={LAYERS}", f"--tokens={TOKENS}", f"--experts={EXPERTS}", f"--top-k={TOP_K}"]


def train(*arguments):
    command = [sys.executable, str(SCRIPT), *TINY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def load(path):
    with np.load(path) as trace:
        return trace["topk_ids"], trace["layers"].tolist()


def imbalances(ids_LNK, experts):
    loads_LE = np.stack([np.bincount(ids.ravel(), minlength=experts) for ids in ids_LNK])
    return loads_LE.max(axis=1) / loads_LE.mean(axis=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("trained")
    return folder, train("-o", folder / "trace.npz", "--config", folder / "config.json")


def test_it_trains_and_records_every_token(trained):
    folder, run = trained
    assert run.returncode == 0, run.stderr
    assert all(word in run.stdout for word in ("unigram", "bigram", "this model", "max/mean expert load"))
    assert "step    3/3" in run.stderr

    topk_ids, layers = load(folder / "trace.npz")
    assert topk_ids.shape == (LAYERS - 1, TOKENS, TOP_K)
    assert topk_ids.dtype == np.uint8
    assert topk_ids.max() < EXPERTS
    assert (np.diff(np.sort(topk_ids, axis=-1), axis=-1) > 0).all(), "a token visits an expert twice"
    assert layers == [1, 2]  # layer 0 is dense
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_experts"], config["num_experts_per_tok"], config["hidden_size"]) == (EXPERTS, TOP_K, 16)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "trace.npz"], "a temporary file stays behind"


def test_the_same_seed_gives_the_same_bytes(trained, tmp_path):
    folder, _ = trained
    assert train("-o", tmp_path / "again.npz").returncode == 0
    assert (tmp_path / "again.npz").read_bytes() == (folder / "trace.npz").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k=9"], "--top-k (9) > --experts (8)"),
        (["--tokens=9999999"], "--tokens (9999999) >= tokens of the held-out text"),
        (["-o", "nowhere/trace.npz"], "nowhere/trace.npz: no such folder: nowhere"),
    ],
)
def test_wrong_input_is_refused_before_training(arguments, message, tmp_path):
    pytest.importorskip("torch")
    run = train("-o", tmp_path / "trace.npz", *arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert "step" not in run.stderr
    assert not (tmp_path / "trace.npz").exists()


@pytest.mark.parametrize("name", ["skewed", "balanced"])
def test_bundled_trace_is_of_the_bundled_model(name):
    config = json.loads((BUNDLED / "config.json").read_text())
    topk_ids, layers = load(BUNDLED / f"{name}.npz")
    assert layers == [i for i in range(config["num_hidden_layers"]) if i not in config["mlp_only_layers"]]
    assert topk_ids.shape == (len(layers), 8192, config["num_experts_per_tok"])
    assert topk_ids.max() < config["num_experts"]
    assert (np.diff(np.sort(topk_ids, axis=-1), axis=-1) > 0).all(), "a token visits an expert twice"


def test_bundled_traces_are_small_and_differ_in_skew():
    assert sum((BUNDLED / f"{name}.npz").stat().st_size for name in ("skewed", "balanced")) < 1_000_000
    experts = json.loads((BUNDLED / "config.json").read_text())["num_experts"]
    skewed, balanced = (imbalances(load(BUNDLED / f"{name}.npz")[0], experts) for name in ("skewed", "balanced"))
    assert np.median(skewed) > 1.3 * np.median(balanced)
    assert skewed.max() > balanced.max()
