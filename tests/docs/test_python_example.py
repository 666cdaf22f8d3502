"""The Python example of the README, run as it stands on a small file of loads."""

import re

import numpy as np

from tests.docs.blocks import ROOT

README = ROOT / "README.md"


def test_the_example_runs_and_prints_exchange_slots_and_gap(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"From Python:\n\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    load_LE = np.random.default_rng(0).integers(100, 1000, (2, 8))
    rows = [f"{layer},{expert},{load_LE[layer, expert]}" for layer in range(2) for expert in range(8)]
    (tmp_path / "loads.csv").write_text("\n".join(["layer,expert,count", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    exchange, slots, gap = re.fullmatch(r"(\S+) (\[\[.*\]\]) (\S+)\n", capsys.readouterr().out).groups()
    assert exchange in ("pairwise", "dedup", "two-level")
    assert len(eval(slots)) == 8
    assert 0 <= float(gap) < 1
