"""The cases of docs/quality.md: what is planned on what, and what is kept of it (plain JSON; plans lie beside it)."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.plans import FILES
from benchmarks.quality.coherent_cases import COHERENT, coherent_case
from benchmarks.quality.ilp_cases import exflow_case, moetuner_case
from benchmarks.quality.scored import (
    PROFILE,
    TRACES,
    best_baseline,
    counts_workload,
    even_slots,
    floor_us,
    halves,
    hosts_of_h100,
    score,
    statistics,
)
from planner import assemble_plan, build_workload, load_cluster, load_model, solve
from planner.migrate import InForce, MoveLimit
from planner.placement import IntArray
from planner.robust import Risk
from planner.solve import Solution
from planner.solve.replan import replan
from planner.solve.scenarios import solve_scenarios
from planner.synthetic import power_law
from planner.timing import Exchange
from planner.workload import Workload

Case = Callable[[], dict[str, Any]]

SETTINGS = (("hgx-h100:2", 18), ("hgx-h100:4", 9), ("hgx-h100:8", 5), ("gb200-nvl72:1", 4), ("hgx-h100:18", 2))
STEPS = {"prefill": 4096, "decode": 128}  # tokens per rank
TRACE_GROUPS = ((2, 8, 9), (4, 8, 9), (2, 16, 5), (4, 16, 5))  # hosts, ranks, slots of a rank
ROBUST_FILES = ("prefill_in512", "prefill_in2048", "decode_in1000out1000")
GROWTH_HOSTS = (1, 2, 4, 8, 16)
GROWTH_EXPERTS = (64, 128, 256, 512)
GROWTH_LAYERS = 8


def all_cases(folder: Path, workers: int, layers: int | None = None) -> dict[str, Case]:
    """Return every case by its name; plans go to `folder`, those of counts for so many layers, or for all."""
    cases: dict[str, Case] = {}
    for (cluster, slots), (step, tokens), file in itertools.product(SETTINGS, STEPS.items(), FILES):
        name = f"counts-{cluster.replace(':', 'x')}-{step}-{file}"
        cases[name] = _bind(counts_case, file, cluster, slots, tokens, layers, folder / f"{name}.plan.json", workers)
    for trace, group, (step, tokens) in itertools.product(TRACES, TRACE_GROUPS, STEPS.items()):
        name = f"trace-{trace}-{group[0]}hosts-{group[1]}ranks-{step}"
        cases[name] = _bind(trace_case, trace, group, tokens, folder / f"{name}.plan.json", workers)
    for setting in COHERENT:
        name = f"coherent-{setting.name}"
        cases[name] = _bind(coherent_case, setting, folder / f"{name}.plan.json", workers)
    for file in FILES:
        cases[f"balance-{file}"] = _bind(balance_case, file, workers)
    for (step, tokens), file in itertools.product(STEPS.items(), FILES):
        cases[f"pairwise-{step}-{file}"] = _bind(whole_case, file, "hgx-h100:4", 9, tokens, "pairwise", workers)
    cases["whole-hgx-h100x18"] = _bind(whole_case, "prefill_in1024", "hgx-h100:18", 2, 4096, "auto", workers)
    cases["migration"] = _bind(migration_case, workers)
    cases["robust"] = _bind(robust_case, workers)
    for hosts in (1, 2):
        cases[f"ilp-moetuner-{8 * hosts}"] = _bind(moetuner_case, "prefill_in1024", hosts)
    for trace in TRACES:
        cases[f"ilp-exflow-{trace}"] = _bind(exflow_case, trace)
    for hosts in GROWTH_HOSTS:
        cases[f"growth-ranks-{8 * hosts}"] = _bind(growth_case, hosts, 256)
    for experts in GROWTH_EXPERTS:
        cases[f"growth-experts-{experts}"] = _bind(growth_case, 4, experts)
    return cases


def _bind(function: Callable[..., dict[str, Any]], *args: Any) -> Case:
    return lambda: function(*args)


def measured(case: Case) -> dict[str, Any]:
    """Run a case in this process; add its seconds, the memory at its peak and the load of the machine."""
    load, started = os.getloadavg()[0], time.perf_counter()
    kept = case()
    kept["case_seconds"] = round(time.perf_counter() - started, 2)
    kept["machine_load"] = round((load + os.getloadavg()[0]) / 2, 1)
    kept["peak_mb"] = _peak_mb()
    return kept


def _peak_mb() -> float:
    """Return the most memory that this process and its workers, still idle, have ever held, in all."""
    own = str(os.getpid())
    total_kb = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except OSError:  # a process that has just ended
            continue
        if own in (path.parent.name, fields["PPid"].strip()):
            total_kb += int(fields.get("VmHWM", "0 kB").split()[0])
    return round(total_kb / 1024)


def counts_case(
    file: str, cluster: str, slots: int, tokens: int, layers: int | None, plan_path: Path, workers: int
) -> dict[str, Any]:
    """Plan a step of DeepSeek-V3; compare with the best baseline under its best exchange."""
    workload = counts_workload(file, cluster, tokens, layers)
    slots_R = even_slots(workload, slots)
    solution = solve(workload, PROFILE, slots_R, workers=workers)
    save(workload, slots_R, solution, plan_path)
    best, totals = best_baseline(solution.baselines, workload)
    return {
        "file": file,
        "cluster": cluster,
        "slots": slots,
        "tokens": tokens,
        "layers": workload.layers,
        "ours": score("ours", solution.placements, workload, solution.exchange).to_json(),
        "best": best.to_json(),
        "baselines_us": totals,
        "bound_us": [layer.bound for layer in solution.layers],
        "objective_us": [layer.objective for layer in solution.layers],
        "seconds": round(solution.seconds, 2),
    }


def save(workload: Workload, slots_R: IntArray, solution: Solution, path: Path) -> None:
    """Write the plan that a case found, for those who check its row."""
    plan = assemble_plan(workload, PROFILE, slots_R, solution, seed=0, inputs={}, command="benchmarks/plan_quality.py")
    plan.save(path)


def trace_case(trace: str, group: tuple[int, int, int], tokens: int, plan_path: Path, workers: int) -> dict[str, Any]:
    """Plan on the first half of a trace, baselines too; score both on both halves."""
    hosts, ranks, slots = group
    model, cluster = load_model("deepseek-v2-lite"), hosts_of_h100(hosts, ranks)
    first, second = (build_workload(model, cluster, half, tokens) for half in halves(trace))
    slots_R = even_slots(first, slots)
    solution = solve(first, PROFILE, slots_R, workers=workers)
    save(first, slots_R, solution, plan_path)
    kept: dict[str, Any] = {"trace": trace, "hosts": hosts, "ranks": ranks, "slots": slots, "tokens": tokens}
    for name, workload in (("in", first), ("out", second)):
        best, totals = best_baseline(solution.baselines, workload)
        ours = score("ours", solution.placements, workload, solution.exchange)
        kept[name] = {"ours": ours.to_json(), "best": best.to_json(), "baselines_us": totals}
    return {**kept, "floor_us": floor_us(second, slots_R), "seconds": round(solution.seconds, 2)}


def balance_case(file: str, workers: int) -> dict[str, Any]:
    """Plan for load balance alone at 32 ranks of 9 slots."""
    workload = counts_workload(file, "hgx-h100:4", STEPS["prefill"])
    solution = solve(
        workload, PROFILE, even_slots(workload, 9), objective="balance", exchange="pairwise", workers=workers
    )
    worst = {
        name: score(name, made, workload, "pairwise").worst_imbalance
        for name, made in {**solution.baselines, "ours": solution.placements}.items()
    }
    return {
        "file": file,
        "worst_imbalance": worst,
        "worst_gap": max(layer.gap for layer in solution.layers),
        "seconds": round(solution.seconds, 2),
    }


def whole_case(
    file: str, cluster: str, slots: int, tokens: int, exchange: Exchange | Literal["auto"], workers: int
) -> dict[str, Any]:
    """Plan all layers under one exchange, or under the fastest; the gap of each layer."""
    workload = counts_workload(file, cluster, tokens)
    solution = solve(workload, PROFILE, even_slots(workload, slots), exchange=exchange, workers=workers)
    best_us = min(prediction.total_us for prediction in solution.predictions[:-1])
    return {
        "file": file,
        "cluster": cluster,
        "slots": slots,
        "tokens": tokens,
        "exchange": solution.exchange,
        "total_us": solution.predictions[-1].total_us,
        "best_us": best_us,
        "bound_us": sum(layer.bound for layer in solution.layers),
        "gaps": [layer.gap for layer in solution.layers],
        "seconds": round(solution.seconds, 2),
    }


def migration_case(workers: int) -> dict[str, Any]:
    """Go from the plan for a prefill workload towards that for decode, with ever more slots moved."""
    before, after = (
        counts_workload(file, "hgx-h100:4", STEPS["decode"]) for file in ("prefill_in1024", "decode_in1000out1000")
    )
    slots_R = even_slots(after, 9)
    old = solve(before, PROFILE, slots_R, workers=workers)
    free = solve(after, PROFILE, slots_R, workers=workers)
    in_force, total_slots = InForce(old.placements, old.exchange), int(slots_R.sum()) * after.num_layers
    rows = []
    for part in (0.02, 0.05, 0.1, 0.2):
        limit = MoveLimit(max_moves=int(part * total_slots))
        found = replan(free, in_force, after, PROFILE, slots_R, limit, workers=workers)
        rows.append(
            {
                "part": part,
                "moves": found.moves,
                "part_of_gain": found.part_of_gain,
                "in_force_us": found.in_force.mean("layer_us"),
                "new_us": found.solution.predictions[-1].mean("layer_us"),
                "free_us": found.free.mean("layer_us"),
            }
        )
    return {"total_slots": total_slots, "rows": rows}


def robust_case(workers: int) -> dict[str, Any]:
    """Plan on three files together and on each alone; the worst total of each plan over the three others."""
    known = {file: counts_workload(file, "hgx-h100:4", STEPS["prefill"]) for file in FILES}
    seen = [known[file] for file in ROBUST_FILES]
    slots_R = even_slots(seen[0], 9)
    together = solve_scenarios(seen, PROFILE, slots_R, Risk(1.0), workers=workers).solution
    plans = {"the three": together}
    plans |= {file: solve(known[file], PROFILE, slots_R, workers=workers) for file in ROBUST_FILES}
    unseen = [file for file in FILES if file not in ROBUST_FILES]
    totals = {
        name: {
            file: score(name, plan.placements, known[file], plan.exchange).total_us / len(plan.layers)
            for file in (*ROBUST_FILES, *unseen)
        }
        for name, plan in plans.items()
    }
    return {"seen": list(ROBUST_FILES), "unseen": unseen, "layer_us": totals}


def growth_case(hosts: int, experts: int) -> dict[str, Any]:
    """Time the search on one core, a few layers, by ranks (256 experts) and by experts (32 ranks)."""
    model = load_model("deepseek-v3")
    if experts == model.experts:
        routing = statistics("prefill_in1024")
    else:
        model = model.model_copy(update={"experts": experts})
        routing = power_law(model, 0.5)
    routing = routing.select(routing.layers[:: len(routing.layers) // GROWTH_LAYERS][:GROWTH_LAYERS])
    workload = build_workload(model, load_cluster(f"hgx-h100:{hosts}"), routing, STEPS["prefill"])
    ranks = workload.num_ranks
    slots_R = even_slots(workload, -(-experts // ranks) + 1)
    started = time.perf_counter()
    fast = solve(workload, PROFILE, slots_R, exchange="two-level", time_limit_s=0)
    fast_s = time.perf_counter() - started
    solution = solve(workload, PROFILE, slots_R, exchange="two-level", workers=1)
    return {
        "ranks": ranks,
        "experts": experts,
        "layers": workload.num_layers,
        "seconds_a_layer": solution.seconds / workload.num_layers,
        "fast_seconds_a_layer": fast_s / workload.num_layers,
        "ratio": sum(one.objective for one in solution.layers) / sum(one.objective for one in fast.layers),
    }
