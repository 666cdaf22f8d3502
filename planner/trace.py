"""A simulated layer as a Chrome trace: open it in Perfetto (ui.perfetto.dev) or chrome://tracing.

One track a rank (receiving tokens, experts, waiting for results) and one a link that carried anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.simulate import Simulation

RANKS, LINKS = 1, 2  # process ids of the two groups of tracks
IDLE = 1e-3  # a link below this part of its speed counts as idle
SAME = 0.05  # spans whose use differs by less than this are drawn as one


def chrome_trace(simulation: Simulation) -> dict[str, Any]:
    """Return the trace document; times in microseconds, as the format has them."""
    busy = _busy_links(simulation)
    events = [_name("process_name", RANKS, 0, "ranks"), _name("process_name", LINKS, 0, "links (busy ones)")]
    events += _rank_events(simulation)
    for track, link in enumerate(busy):
        events.append(_name("thread_name", LINKS, track, simulation.link_names[link]))
        events += _link_events(simulation, link, track)
    return {
        "displayTimeUnit": "ns",
        "otherData": {
            "layer": simulation.layer,
            "simulated_us": simulation.layer_us,
            "closed_form_us": simulation.closed_form.layer_us,
        },
        "traceEvents": events,
    }


def _name(what: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": track, "args": {"name": name}}


def _span(name: str, process: int, track: int, start_us: float, end_us: float, **args: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": name.split(" ", maxsplit=1)[0],
        "pid": process,
        "tid": track,
        "ts": round(start_us, 4),
        "dur": round(end_us - start_us, 4),
        "args": args,
    }


def _rank_events(simulation: Simulation) -> list[dict[str, Any]]:
    events = []
    load_R = simulation.closed_form.load_R
    for rank in range(len(load_R)):
        in_us, start_us = float(simulation.tokens_in_R[rank]), float(simulation.experts_start_R[rank])
        done_us, back_us = float(simulation.experts_done_R[rank]), float(simulation.back_R[rank])
        events.append(_name("thread_name", RANKS, rank, f"rank {rank}"))
        events.append(_span("dispatch", RANKS, rank, 0.0, in_us))
        events.append(_span("experts", RANKS, rank, start_us, done_us, rows=round(float(load_R[rank]), 1)))
        events.append(_span("combine", RANKS, rank, done_us, back_us))
    return [event for event in events if event["ph"] == "M" or event["dur"] > 0]


def _busy_links(simulation: Simulation) -> list[int]:
    if not simulation.timeline.spans:
        return []
    peak_N = np.max(np.stack([use_N for _, _, use_N in simulation.timeline.spans]), axis=0)
    return [int(link) for link in np.flatnonzero(peak_N > IDLE)]


def _link_events(simulation: Simulation, link: int, track: int) -> list[dict[str, Any]]:
    """Draw the link's use, with neighbouring spans of like use as one."""
    events: list[dict[str, Any]] = []
    start = end = use = 0.0
    for begin_us, span_end_us, use_N in simulation.timeline.spans:
        end_us = min(span_end_us, simulation.layer_us)  # ends that were put together reach a little beyond the last one
        now = float(use_N[link])
        if use > IDLE and abs(now - use) <= SAME and begin_us <= end + 1e-9:
            use = (use * (end - start) + now * (end_us - begin_us)) / (end_us - start)
            end = end_us
            continue
        if use > IDLE:
            events.append(_span(f"busy {use:.0%}", LINKS, track, start, end, use=round(use, 4)))
        start, end, use = begin_us, end_us, now
    if use > IDLE:
        events.append(_span(f"busy {use:.0%}", LINKS, track, start, end, use=round(use, 4)))
    return events


def busiest_link(simulation: Simulation) -> tuple[str, float]:
    """Return the link that worked most and the part of the layer's time that it worked; ("", 0) where nothing moved."""
    if not simulation.timeline.spans or not simulation.link_names:
        return "", 0.0
    work_N = sum((end - start) * use_N.astype(float) for start, end, use_N in simulation.timeline.spans)
    link = int(np.argmax(work_N))
    return simulation.link_names[link], float(np.asarray(work_N)[link] / simulation.layer_us)
