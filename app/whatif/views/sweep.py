"""Sweep: plans over a grid of one or two knobs, made in the background; break-even, and memory against time."""

from __future__ import annotations

import math

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.whatif.charts.grids import AGAINST, METRICS, front, heat, lines
from app.whatif.frame import current, plain, show
from app.whatif.jobs import Job
from app.whatif.panels import REFRESH_S, watch
from app.whatif.parts import chart, table
from app.whatif.state import Grid, Session
from app.whatif.sweeps import KNOBS, MAX_POINTS, Knob, Row, findings, make_points, planned
from app.whatif.work import Planned
from app.whatif.worker import Sweep
from planner.provenance import weakest
from topologies.errors import BadInput

NONE = "none"
EFFORTS = {"fast plans": 0.0, "search 2 s each": 2.0, "search 10 s each": 10.0}
QUESTIONS = {
    "Is redundancy worth its memory?": ("tokens", "slots"),
    "Would a faster network pay?": ("nic_gbps", NONE),
    "Would a larger EP pay?": ("hosts", NONE),
}


def page(mine: Session) -> None:
    """Let the user choose a grid, and show what comes of it."""
    plan = current(mine)
    with st.container(border=True):
        _choose(mine, plan)
    job = mine.jobs.get("sweep")
    if job is None or mine.grid is None:
        st.info("No sweep yet: choose a question or two knobs, and run.", icon=":material/show_chart:")
        return
    if mine.grid.base != mine.settings:
        st.caption(":material/history: This sweep was made for other settings than the pages show now.")
    running = not job.progress.over
    if running:
        watch("sweep")
    st.fragment(_results, run_every=2 * REFRESH_S if running else None)(job, mine.grid)


def _choose(mine: Session, plan: Planned) -> None:
    st.pills("Questions", list(QUESTIONS), key="question", on_change=_asked)
    columns = st.columns([1.3, 2, 1.3, 2, 1.2, 1], vertical_alignment="bottom")
    x = KNOBS[columns[0].selectbox("Over", list(KNOBS), format_func=_label, key="sweep x")]
    xs = _values(columns[1], x, plan, "Values")
    others = [NONE, *(name for name in KNOBS if name != x.field)]
    y_field = columns[2].selectbox("and over", others, format_func=_label, key="sweep y")
    y = KNOBS.get(y_field)
    ys = "" if y is None else _values(columns[3], y, plan, "Its values")
    effort = columns[4].selectbox("Effort", list(EFFORTS), key="sweep effort")
    if columns[5].button("Run", type="primary", icon=":material/play_arrow:", width="stretch", key="run sweep"):
        grid = Grid(x, y, mine.settings)
        points = make_points(mine.settings, mine.uploads, x, _numbers(xs, x), y, _numbers(ys, y) if y else ())
        mine.grid = grid
        mine.begin("sweep", Job(f"Sweep of {len(points)} points", Sweep(points, EFFORTS[effort]), plan.case.key))
        st.rerun()


def _asked() -> None:
    """Set the knobs to those of a question."""
    question = st.session_state["question"]
    if question in QUESTIONS:
        st.session_state["sweep x"], st.session_state["sweep y"] = QUESTIONS[question]


def _label(name: str) -> str:
    return KNOBS[name].label if name in KNOBS else "one knob alone"


def _values(column: DeltaGenerator, knob: Knob, plan: Planned, label: str) -> str:
    """Let the user name the values of a knob; at first some around the setting."""
    key = f"values of {knob.field}"
    if key not in st.session_state:
        values = knob.values
        if knob.field == "slots":
            need = -(-plan.case.model.experts // plan.case.cluster.num_ranks)
            values = tuple(slots for slots in (need, need + 1, need + 2, need + 4) if slots <= plan.case.model.experts)
        if knob.field == "hosts":
            hosts = plan.case.cluster.spec.num_hosts
            values = tuple(sorted({max(1, hosts // 2), hosts, 2 * hosts, 4 * hosts}))
        st.session_state[key] = ", ".join(f"{value:g}" for value in values)
    return column.text_input(label, key=key, help=f"In {knob.unit}; commas between.")


def _numbers(text: str, knob: Knob) -> list[float]:
    """Return the numbers of a list; raises BadInput that names the one that is none."""
    found = []
    for word in text.replace(";", ",").split(","):
        if not word.strip():
            continue
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadInput(f"values of {knob.label}: {word.strip()[:30]!r} is not a number")
        found.append(number)
    if not found:
        raise BadInput(f"values of {knob.label}: the list is empty; give numbers with commas between")
    if len(found) > MAX_POINTS:
        raise BadInput(f"values of {knob.label}: {len(found)} values, over the limit of {MAX_POINTS} points")
    return sorted(set(found))


def _results(job: Job, grid: Grid) -> None:
    rows: list[Row] = list(job.progress.rows)
    if job.progress.state == "cancelled":
        st.caption(f":material/stop_circle: Stopped after {len(rows)} of {job.progress.total} points.")
    if job.progress.state == "failed":
        st.error(f"The sweep failed. {plain(job.progress.error)}", icon=":material/error:")
    if not planned(rows):
        if rows:
            st.error(f"No point of this grid can be planned. {plain(rows[0].problem)}", icon=":material/error:")
        return
    origin = f"predicted, {weakest(row.provenance for row in planned(rows))}"
    names = [name for name in METRICS if name != AGAINST or grid.y is not None]
    metric = st.segmented_control(
        "Shown", names, format_func=lambda name: METRICS[name][0].split(",")[0], required=True,
        default="layer_us" if grid.y is None else AGAINST, key=f"metric {grid.x.field} {grid.y}",
    )  # fmt: skip
    left, right = st.columns(2, gap="medium")
    with left:
        chart(lines(rows, grid.x, grid.y, metric, origin), "sweep", "The metric over the first knob")
    with right:
        chart(front(rows, grid.x, grid.y, origin), "pareto", "Memory against time per token, with the Pareto front")
    if job.progress.over:
        for sentence in findings(rows, grid.x, grid.y):
            st.markdown(f":material/lightbulb: {plain(sentence)} ({origin})")
    if grid.y is not None:
        chart(heat(rows, grid.x, grid.y, metric, origin), "sweep-heat", "The metric over both knobs")
    _table(rows, grid)


def _table(rows: list[Row], grid: Grid) -> None:
    table(
        [
            {
                grid.x.label: row.x,
                **({} if grid.y is None else {grid.y.label: row.y}),
                "ranks": row.ranks,
                "slots per rank": row.slots,
                "exchange": row.exchange,
                "layer us, predicted": round(row.layer_us, 1),
                "dispatch us, predicted": round(row.dispatch_us, 1),
                "compute us, predicted": round(row.compute_us, 1),
                "combine us, predicted": round(row.combine_us, 1),
                "us per token, predicted": round(row.us_per_token, 4),
                "imbalance": round(row.imbalance, 3),
                "weights per rank, GB": round(row.weights_gb, 3),
                "remark": row.problem or row.note,
            }
            for row in rows
        ],
        "sweep",
    )


show(page)
