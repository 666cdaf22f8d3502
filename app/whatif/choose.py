"""Widgets that choose the inputs: cluster, model, routing, step; each writes into the settings."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.whatif.bound import bound, put
from app.whatif.frame import is_upload
from app.whatif.settings import BUNDLED, POWER_LAW, UPLOAD
from app.whatif.state import Session, session
from app.whatif.uploads import ENDINGS, LIMIT_MB, Kind
from app.whatif.words import plain
from planner import model_names
from planner.solve import OBJECTIVES
from planner.timing import EXCHANGES, OVERLAPS, profile_names
from topologies import catalog_names
from topologies.catalog import load_system
from topologies.errors import EpplanError

AS_DESCRIBED: dict[str, Any] = {"hosts": None, "lost": (), "nic_gbps": None, "scale_up": 1.0, "oversubscription": None,
                "slow_rank": None, "system": None}  # fmt: skip
FILE = "a file"
MAX_UNITS = 288  # hosts, or racks of them
ROUTING_NAMES = {BUNDLED: "bundled trace", POWER_LAW: "power law", FILE: FILE}
MODEL_NAMES = {BUNDLED: "bundled: a tiny, really trained MoE", FILE: "a config.json"}
OVERLAP_NAMES = {"none": "none", "shared-expert": "dispatch under shared experts", "two-batches": "two micro-batches"}


def cluster(mine: Session) -> None:
    """Choose a system of the catalog, or a file."""
    uploaded = is_upload(mine.settings.cluster)
    source = st.segmented_control(
        "From",
        ["catalog", FILE],
        default=FILE if uploaded else "catalog",
        key="cluster source",
        required=True,
        width="stretch",
    )
    if source == FILE:
        uploader(
            mine, "cluster", mine.settings.cluster, "NCCL XML, `nvidia-smi topo -m`, or a cluster file", AS_DESCRIBED
        )
        if uploaded:
            system = bound("system", lambda value: value or "-", lambda value: None if value == "-" else value)
            st.selectbox("Completed by (GPU figures, NVLink)", ["-", *catalog_names()], **system)
            _hosts_and_nics()
        return
    name, _, units = ("hgx-h100:2" if uploaded else mine.settings.cluster).partition(":")
    known = name in catalog_names()  # a link may say anything

    def taken() -> None:
        chosen, count = st.session_state["A catalog"], st.session_state["A units"]
        put({"cluster": f"{chosen}:{count}", **AS_DESCRIBED})

    st.session_state["A catalog"] = name if known else None
    st.session_state["A units"] = min(max(int(units), 1), MAX_UNITS) if units.isdecimal() else 1
    st.selectbox("System", catalog_names(), key="A catalog", on_change=taken, help="Figures are the vendors'.")
    if not known:
        return
    domain = load_system(name).domain_hosts
    st.number_input(
        "Hosts" if domain == 1 else f"Racks of {domain} hosts", 1, MAX_UNITS, key="A units", on_change=taken
    )
    if uploaded:
        st.button("Use the catalog instead of the file", on_click=taken)
    st.caption(load_system(name).summary)


def _hosts_and_nics() -> None:
    left, right = st.columns(2)
    left.number_input("Hosts", 1, MAX_UNITS, value=None, placeholder="as in the file", **bound("hosts"))
    right.number_input(
        "NIC speed, Gb/s per direction", 1.0, 100_000.0, step=100.0, value=None, placeholder="as in the file",
        **bound("nic_gbps", lambda value: None if value is None else 8 * value,
                lambda value: None if value is None else value / 8),
    )  # fmt: skip


def model(mine: Session) -> None:
    """Choose a known model, or a config.json."""
    source = "a file" if is_upload(mine.settings.model) else mine.settings.model
    names = [BUNDLED, *model_names(), FILE]

    def taken() -> None:
        chosen = st.session_state["A model"]
        if chosen == FILE:
            return
        put({"model": chosen, "routing": _routing_for(mine, chosen), "slots": None, "weights_gb": None})

    if st.session_state.get("A model") != FILE:
        st.session_state["A model"] = source if source in names else None
    chosen = st.selectbox(
        "Model",
        names,
        key="A model",
        on_change=taken,
        format_func=lambda name: MODEL_NAMES.get(name, name),
    )
    if chosen == FILE:
        also = {"routing": _routing_for(mine, FILE), "slots": None, "weights_gb": None}
        uploader(mine, "model", mine.settings.model, "config.json as Hugging Face has it", also)


def _routing_for(mine: Session, model: str) -> str:
    """Return the routing that stays when the model changes: the bundled trace is of the bundled model alone."""
    routing = mine.settings.routing
    return POWER_LAW if routing == BUNDLED and model != BUNDLED else routing


def routing(mine: Session) -> None:
    """Choose recorded statistics, or a power law."""
    settings = mine.settings
    kinds = [*([BUNDLED] if settings.model == BUNDLED else []), POWER_LAW, FILE]
    now = FILE if is_upload(settings.routing) else settings.routing

    def taken() -> None:
        chosen = st.session_state["A routing source"]
        if chosen in (BUNDLED, POWER_LAW):
            put({"routing": chosen})

    if st.session_state.get("A routing source") != FILE or now == FILE:
        st.session_state["A routing source"] = now if now in kinds else None
    source = st.segmented_control(
        "From",
        kinds,
        key="A routing source",
        on_change=taken,
        format_func=lambda kind: ROUTING_NAMES[kind],
        required=True,
        width="stretch",
    )
    if source == FILE:
        uploader(mine, "routing", settings.routing, "SGLang JSON or .pt, .npz, .csv, ... (told by content)")
    elif source == POWER_LAW:
        highest = max(1.5, settings.skew)  # a link may ask for more than anybody records
        st.slider(
            "Exponent (0: even load; recorded DeepSeek loads look like 0.4)", 0.0, highest, step=0.05, **bound("skew")
        )
        st.caption("Synthetic: the expert of rank r gets a share proportional to 1 / r^exponent, anew in every layer.")
    elif source == BUNDLED:
        st.caption("8,192 tokens of the bundled model's own routers, recorded on text that it had not seen.")


def step(mine: Session) -> None:
    """Choose what a step is, how much memory experts may take, and how plans are judged."""
    columns = st.columns([1.1, 1.1, 1, 1, 1.2, 1])
    columns[0].number_input(
        "Tokens per rank in a step", 1.0, 1e7, step=128.0, value=None, format="%g",
        placeholder="as in the statistics", **bound("tokens"),
    )  # fmt: skip
    with columns[1]:
        _slots(mine)
    columns[2].selectbox("Exchange", ["auto", *EXCHANGES], **bound("exchange"))
    columns[3].selectbox("Objective", OBJECTIVES, **bound("objective"))
    columns[4].selectbox("Overlap", OVERLAPS, format_func=lambda name: OVERLAP_NAMES[name], **bound("overlap"))
    with columns[5]:
        _profile(mine)


def _slots(mine: Session) -> None:
    by_memory = mine.settings.weights_gb is not None
    how = st.session_state.get("A slots by", "memory" if by_memory else "slots")
    if how == "memory":
        st.number_input(
            "GB of expert weights per rank", 0.001, 10_000.0, value=None, format="%g", placeholder="e.g. 40",
            **bound("weights_gb", also={"slots": None}),
        )  # fmt: skip
    else:
        st.number_input(
            "Expert slots per rank", 1, 4096, value=None, placeholder="needed, plus one",
            **bound("slots", also={"weights_gb": None}),
        )  # fmt: skip
    st.radio(
        "Given as", ["slots", "memory"], key="A slots by", horizontal=True, index=int(by_memory),
        label_visibility="collapsed",
    )  # fmt: skip


def _profile(mine: Session) -> None:
    names = [*profile_names(), *([mine.settings.profile] if is_upload(mine.settings.profile) else [])]
    st.selectbox(
        "Timing profile", names, **bound("profile"),
        format_func=lambda name: "uploaded" if name.startswith(UPLOAD) else name,
        help="vendor: data sheets with typical efficiencies. Others are fitted to measurements (`epplan calibrate`).",
    )  # fmt: skip
    with st.popover("Own profile", width="stretch"):
        uploader(mine, "profile", mine.settings.profile, "YAML of `epplan calibrate`")


def uploader(mine: Session, kind: Kind, reference: str, words: str, also: dict[str, Any] | None = None) -> None:
    """Take a file of a kind into the session, and make it the one in use."""
    key = f"upload {kind}"

    def taken() -> None:
        given = st.session_state[key]
        if given is None:
            return
        try:
            upload = session().uploads.add(kind, given.name, given.getvalue())
        except EpplanError as error:
            session().complaint = plain(str(error))
            return
        put({kind: upload.reference, **(also or {})})

    st.file_uploader(words, list(ENDINGS[kind]), key=key, on_change=taken, max_upload_size=LIMIT_MB[kind])
    if reference in mine.uploads.files:
        st.caption(f":material/check: in use: **{plain(mine.uploads.files[reference].name)}** (only in this session)")
