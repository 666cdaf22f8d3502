"""Sweep: plans over a grid of one or two knobs, made in the background; break-even, and memory against time."""

from __future__ import annotations

import math

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.whatif.charts.grids import AGAINST, METRICS, front, heat, lines, title_of
from app.whatif.findings import findings
from app.whatif.frame import current, show
from app.whatif.jobs import Job
from app.whatif.panels import REFRESH_S, watch
from app.whatif.parts import chart, table
from app.whatif.state import Grid, Session
from app.whatif.sweeps import KNOBS, MAX_POINTS, Knob, Point, Row, make_points, planned
from app.whatif.words import plain
from app.whatif.work import Planned
from app.whatif.worker import Sweep
from planner.provenance import weakest
from topologies.errors import BadInput

NONE = "none"
EFFORTS = {"fast plans": 0.0, "search 2 s each": 2.0, "search 10 s each": 10.0}
QUESTIONS = {
    "Is redundancy worth its memory?": ("tokens", "slots"),
    "Would a faster network pay?": ("nic_gbps", NONE),
    "Would a larger EP pay?": ("tokens", "hosts"),
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
        try:
            points = _points(mine, x, xs, y, ys)
        except BadInput as error:
            st.error(plain(str(error)), icon=":material/error:")
            return
        mine.grid = Grid(x, y, mine.settings)
        mine.begin("sweep", Job(f"Sweep of {len(points)} points", Sweep(points, EFFORTS[effort]), plan.case.key))
        st.rerun()


def _points(mine: Session, x: Knob, xs: str, y: Knob | None, ys: str) -> tuple[Point, ...]:
    """Return the points of a grid; raises BadInput where a list is none, or they are too many."""
    at_x, at_y = _numbers(xs, x), _numbers(ys, y) if y else []
    if len(at_x) * max(len(at_y), 1) > MAX_POINTS:
        raise BadInput(f"{len(at_x)} x {max(len(at_y), 1)} values are over the {MAX_POINTS} points of a sweep")
    return make_points(mine.settings, mine.uploads, x, at_x, y, at_y)


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
        "Shown", names, format_func=lambda name: title_of(rows, grid.y, name).rpartition(",")[0], required=True,
        default="layer_us" if grid.y is None else AGAINST, key=f"metric {grid.x.field} {grid.y}",
    )  # fmt: skip
    memories = {round(row.weights_gb, 3) for row in planned(rows)}
    left, right = st.columns(2, gap="medium") if len(memories) > 1 else (st.container(), None)
    with left:
        chart(lines(rows, grid.x, grid.y, metric, origin), "sweep", "The metric over the first knob")
    if right is None:
        st.caption(f"Memory is the same at every point: {memories.pop():,.2f} GB of expert weights per rank (exact).")
    else:
        with right:
            chart(front(rows, grid.x, grid.y, origin), "pareto", "Memory against time per token, with the Pareto front")
            st.caption("Coloured: Pareto front of each load. Grey: another needs no more memory and time.")
    if job.progress.over:
        for sentence in findings(rows, grid.x, grid.y):
            st.markdown(f":material/lightbulb: {plain(sentence)} :gray[({origin})]")
    if grid.y is not None:
        chart(heat(rows, grid.x, grid.y, metric, origin), "sweep-heat", "The metric over both knobs")
    _table(rows, grid, origin)


def _table(rows: list[Row], grid: Grid, origin: str) -> None:
    swept = {knob.field for knob in (grid.x, grid.y) if knob is not None}
    remarks = any(row.problem or row.note for row in rows)
    st.subheader(f"All points ({origin})", anchor=False)
    table(
        [
            {
                grid.x.label: row.x,
                **({} if grid.y is None else {grid.y.label: row.y}),
                "ranks": row.ranks,
                **({} if "slots" in swept else {"slots per rank": row.slots}),
                "exchange": row.exchange,
                "layer us, predicted": round(row.layer_us, 1),
                "dispatch us, predicted": round(row.dispatch_us, 1),
                "compute us, predicted": round(row.compute_us, 1),
                "combine us, predicted": round(row.combine_us, 1),
                "us per token, predicted": round(row.us_per_token, 3),
                "imbalance": round(row.imbalance, 3),
                "GB per rank": round(row.weights_gb, 3),
                **({"remark": row.problem or row.note} if remarks else {}),
            }
            for row in rows
        ],
        "sweep",
        said="predicted",
    )
    st.caption("Times of a layer: means; per token: of all MoE layers, for each token of a rank. GB of expert weights.")


show(page)
