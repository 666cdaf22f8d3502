"""Every page in every state, without a browser: empty, loading over, wrong, and with something to show."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app.whatif.cases import make_case
from app.whatif.main import PAGES
from app.whatif.settings import POWER_LAW, Settings
from app.whatif.state import KEY, Session
from app.whatif.uploads import Uploads
from planner import Solution, load_model, predict
from planner.migrate import migration
from planner.placement import IntArray
from planner.synthetic import logical_count_json, power_law
from tests.app.whatif.test_reports import run_json, validation

MAIN = Path(__file__).parents[3] / "app" / "whatif" / "main.py"
PATIENCE_S = 60
LITE = Settings(model="deepseek-v2-lite", routing=POWER_LAW, cluster="hgx-h100:1", tokens=64.0)


def opened(page: str, mine: Session | None = None, query: dict[str, str] | None = None) -> AppTest:
    """Open a page in a fresh session."""
    tab = AppTest.from_file(str(MAIN), default_timeout=PATIENCE_S)
    for name, value in (query or {}).items():
        tab.query_params[name] = value
    if mine is not None:
        tab.session_state[KEY] = mine
    tab.run()
    return shown(tab, page)


def shown(tab: AppTest, page: str) -> AppTest:
    """Go to a page, or run it again."""
    tab.switch_page(f"views/{page}.py")
    return fine(tab.run())


def fine(tab: AppTest) -> AppTest:
    """Fail on any traceback."""
    assert not tab.exception, [one.value for one in tab.exception]
    return tab


def texts(elements: Any) -> str:
    """Return the text of some elements as one."""
    return "\n".join(str(one.value) for one in elements)


def figures(tab: AppTest) -> dict[str, str]:
    """Return the figures of a page."""
    return {one.label: one.value for one in tab.metric}


def mine_of(tab: AppTest) -> Session:
    """Return the state of a session."""
    found = tab.session_state[KEY]
    assert isinstance(found, Session)
    return found


@pytest.mark.parametrize("page", list(PAGES))
def test_every_page_opens_on_the_bundled_example(page: str) -> None:
    tab = opened(page)
    assert not tab.error
    if page != "measured":
        assert "hgx-h100:2" in texts(tab.markdown)
        assert "predicted, vendor" in texts(tab.markdown)


@pytest.mark.parametrize("page", list(PAGES))
@pytest.mark.parametrize("profile", ["h200", "a100"])
def test_every_page_opens_from_a_link_with_lost_and_slow_parts(page: str, profile: str) -> None:
    settings = LITE.but(cluster="hgx-h100:3", lost=("host1", "host0/gpu2", "host2/nic0"), slow_rank=1, nic_gbps=100.0,
                        scale_up=0.5, oversubscription=2.0, power=1.25, profile=profile)  # fmt: skip
    tab = opened(page, query=settings.query())
    assert not tab.error, texts(tab.error)
    assert mine_of(tab).settings == settings


@pytest.mark.parametrize("page", [page for page in PAGES if page != "measured"])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"cluster": "hgx-h1000:4"}, "nearest: hgx-h100"),
        ({"routing": "upload:0123"}, "files are not shared with a link"),
        ({"slots": "1"}, "< experts"),
        ({"model": "deepseek-v3", "routing": "power-law", "slots": "200"}, "over the 80.0 GB"),
    ],
)
def test_what_does_not_fit_is_one_line_on_every_page(page: str, query: dict[str, str], said: str) -> None:
    tab = opened(page, query=query)
    assert said in texts(tab.error)
    assert len(tab.error) == 1
    tab.button[-1].click()
    fine(tab.run())
    assert mine_of(tab).settings == Settings()
    assert not tab.error


@pytest.mark.parametrize(
    "query",
    [{"model": "nope"}, {"cluster": "nope:2"}, {"cluster": "hgx-h100:many"}, {"routing": "nope"}, {"profile": "nope"}],
)
def test_whatever_a_link_names_all_can_be_chosen_anew_on_inputs(query: dict[str, str]) -> None:
    tab = opened("inputs", query=query)
    assert "many" in texts(tab.error) or "nope" in texts(tab.error)
    tab.selectbox(key="A catalog").set_value("hgx-h20").run()
    tab.selectbox(key="A profile").set_value("h200").run()
    tab.selectbox(key="A model").set_value("deepseek-v2-lite").run()
    tab.button_group(key="A routing source").set_value("power-law").run()
    assert not texts(fine(tab).error)


def test_a_link_with_more_skew_than_the_slider_has_opens() -> None:
    tab = opened("inputs", query={"routing": "power-law", "skew": "3"})
    assert not tab.error, texts(tab.error)
    assert tab.slider(key="A skew").value == 3


def test_inputs_judge_the_routing_for_the_clusters_ranks() -> None:
    assert "on 16 ranks imbalance" in texts(opened("inputs").caption)


def test_what_cannot_be_met_has_ways_out() -> None:
    tab = opened("plan", query=LITE.but(slots=2, lost=("host0/gpu1",)).query())
    assert '"Expert slots per rank" 10 or more' in texts(tab.error)
    tab.button(key="way out With the lost parts back").click().run()
    assert mine_of(tab).settings.lost == ()
    tab.button(key="way out As many slots as experts need, and one spare").click().run()
    assert not fine(tab).error
    assert mine_of(tab).settings == LITE


def test_a_broken_link_shows_the_defaults_and_says_so() -> None:
    tab = opened("plan", query={"tokens": "many"})
    assert mine_of(tab).settings == Settings()


def test_a_fault_of_ours_is_no_traceback(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("app.whatif.work.summary", broken)
    tab = opened("inputs")
    assert "a fault of epplan" in texts(tab.error)
    assert "secret detail" not in texts(tab.error)
    assert "secret detail" in caplog.text


def test_inputs_change_the_settings_and_the_address() -> None:
    tab = opened("inputs")
    tab.selectbox(key="A catalog").set_value("gb200-nvl72").run()
    tab.number_input(key="A units").set_value(1).run()
    tab.selectbox(key="A model").set_value("deepseek-v2-lite").run()
    tab.slider(key="A skew").set_value(0.8).run()
    tab.number_input(key="A tokens").set_value(256.0).run()
    tab.selectbox(key="A exchange").set_value("pairwise").run()
    fine(tab)
    wanted = Settings(cluster="gb200-nvl72:1", model="deepseek-v2-lite", routing=POWER_LAW, skew=0.8, tokens=256.0,
                      exchange="pairwise")  # fmt: skip
    assert mine_of(tab).settings == wanted
    assert dict(tab.query_params.items()) == wanted.query()
    tab.radio(key="A slots by").set_value("memory").run()
    tab.number_input(key="A weights_gb").set_value(4.0).run()
    assert mine_of(tab).settings.weights_gb == 4.0
    assert not tab.error


def test_uploads_of_every_kind_and_their_errors() -> None:
    model = load_model("deepseek-v2-lite")
    tab = opened("inputs", Session(settings=LITE))
    tab.button_group(key="A routing source").set_value("a file").run()
    loads = logical_count_json(power_law(model, 1.0), model).encode()
    tab.file_uploader(key="upload routing").upload("loads.json", loads, "application/json").run()
    assert "in use: **loads.json**" in texts(fine(tab).caption)
    assert mine_of(tab).settings.routing.startswith("upload:")
    tab.file_uploader(key="upload profile").upload("p.yaml", b"name: x", "text/yaml").run()
    assert "p.yaml" in texts(fine(tab).error)


def test_the_plan_page_says_how_good_and_offers_a_search() -> None:
    tab = opened("plan", Session(settings=LITE))
    assert "Fast plan" in texts(tab.markdown)
    assert {"layer, mean of all", "imbalance", "gap to the bound"} <= set(figures(tab))
    tab.selectbox(key="shown plan").set_value("eplb-global").run()
    fine(tab)


def test_a_search_replaces_the_fast_plan() -> None:
    tab = opened("plan", Session(settings=LITE))
    tab.selectbox(key="effort A").set_value("10 s").run()
    fast = float(figures(tab)["layer, mean of all"].split()[0].replace(",", ""))
    tab.button(key="search A").click().run()
    job = mine_of(tab).jobs["search"]
    end = time.monotonic() + 120
    while not job.progress.over:
        assert time.monotonic() < end, "the search did not end in 120 s"
        time.sleep(0.1)
    assert job.progress.state == "done", job.progress.error
    fine(tab.run())
    assert "Searched plan" in texts(tab.markdown)
    assert float(figures(tab)["layer, mean of all"].split()[0].replace(",", "")) <= fast


def test_what_if_compares_and_adopts() -> None:
    tab = opened("what_if", Session(settings=LITE.but(cluster="hgx-h100:2", slots=5)))
    assert "B is A" in texts(tab.info)
    tab.select_slider(key="B nic_gbps").set_value(800).run()
    assert mine_of(tab).other == mine_of(tab).settings.but(nic_gbps=100.0)
    assert {"A, predicted", "A's plan in B, predicted", "B, fast plan, predicted"} <= set(figures(fine(tab)))
    tab.multiselect(key="B lost").set_value(["host1"]).run()
    assert figures(fine(tab))["A's plan in B"] == "not possible"
    assert figures(tab)["pays back after"] in ("no choice", "-")
    assert "taken with 8 slots per rank" in texts(tab.info)
    tab.button(key="adopt").click().run()
    fine(tab)
    assert mine_of(tab).settings.lost == ("host1",)
    assert mine_of(tab).settings.slots == 8


def test_what_if_tells_what_moving_from_a_to_b_takes() -> None:
    """Skewed loads need other copies; the page says what `planner.migrate` says of the two plans."""
    a = LITE.but(cluster="hgx-h100:2", slots=5)
    tab = opened("what_if", Session(settings=a))
    tab.select_slider(key="B power").set_value(2.0).run()
    found = figures(fine(tab))
    cases = [make_case(settings, Uploads()) for settings in (a, a.but(power=2.0))]
    old, new = (case.fast_plan(case.workload()) for case in cases)
    case, workload = cases[1], cases[1].workload()
    moved = migration(old.placements, new.placements, workload.layers, case.cluster, case.model, case.profile)
    kept_us = predict("A", old.placements, workload, case.profile, old.exchange).total_us
    assert moved.moves
    assert found["experts that move"] == f"{len(moved.moves):,}"
    assert found["weights on the way"] == f"{moved.total_bytes / 1e9:,.3g} GB"
    assert found["time to move"] == f"{moved.time_us / 1e3:,.3g} ms"
    steps = moved.time_us / (kept_us - new.predictions[-1].total_us)
    assert found["pays back after"] == f"{math.ceil(steps):,} steps"


def test_what_if_tells_the_price_of_surviving_a_host() -> None:
    """30 of 80 slots are spare: B keeps more experts on two hosts than A, and the page counts them in both."""
    a = LITE.but(cluster="hgx-h100:2", slots=5)
    tab = opened("what_if", Session(settings=a))
    tab.toggle(key="B survive").set_value(True).run()
    fine(tab)
    cases = [make_case(settings, Uploads()) for settings in (a, a.but(survive=True))]
    host_R = np.asarray(cases[0].cluster.host_of_rank)
    alive = [sum(on_two_hosts(case.fast_plan(case.workload()), host_R)) for case in cases]
    table = tab.dataframe[-1].value.set_index("what")
    row = table.loc["experts that survive the loss of any host"]
    assert [row["A"].split()[0], row["B"].split()[0]] == [f"{count:,}" for count in alive]
    assert alive[0] < alive[1]


def on_two_hosts(plan: Solution, host_R: IntArray) -> list[int]:
    """Return the number of experts of each layer with copies on two hosts, by looking at every slot."""
    counts = []
    for placement in plan.placements:
        hosts: dict[int, set[int]] = {}
        for rank, row in enumerate(placement.slots()):
            for expert in row:
                hosts.setdefault(expert, set()).add(int(host_R[rank]))
        counts.append(sum(len(found) > 1 for found in hosts.values()))
    return counts


def test_what_if_says_what_cannot_be_and_keeps_its_knobs() -> None:
    tab = opened("what_if", Session(settings=LITE))
    tab.multiselect(key="B lost").set_value(["host0"]).run()
    assert "no rank is left" in texts(fine(tab).error)
    tab.button(key="reset B").click().run()
    assert not fine(tab).error


def test_a_sweep_draws_what_it_finds() -> None:
    tab = opened("sweep", Session(settings=LITE))
    assert "No sweep yet" in texts(tab.info)
    tab.selectbox(key="sweep x").set_value("tokens").run()
    tab.text_input(key="values of tokens").set_value("32, 64").run()
    tab.selectbox(key="sweep y").set_value("slots").run()
    tab.text_input(key="values of slots").set_value("8, 9").run()
    tab.button(key="run sweep").click().run()
    job = mine_of(tab).jobs["sweep"]
    end = time.monotonic() + 120
    while not job.progress.over:
        assert time.monotonic() < end, "the sweep did not end in 120 s"
        time.sleep(0.1)
    fine(tab.run())
    assert len(tab.dataframe[0].value) == 4
    assert "8 slots" in texts(tab.markdown)


@pytest.mark.parametrize(("values", "said"), [("1, two", "'two' is not a number"), (" ", "the list is empty")])
def test_a_sweep_of_no_numbers_is_one_line(values: str, said: str) -> None:
    tab = opened("sweep", Session(settings=LITE))
    tab.text_input(key="values of slots").set_value(values).run()
    tab.button(key="run sweep").click().run()
    assert said in texts(fine(tab).error)
    assert "No sweep yet" in texts(tab.info)


def test_a_sweep_of_too_many_points_is_one_line() -> None:
    tab = opened("sweep", Session(settings=LITE))
    tab.text_input(key="values of slots").set_value(", ".join(map(str, range(8, 28)))).run()
    tab.selectbox(key="sweep y").set_value("tokens").run()
    tab.text_input(key="values of tokens").set_value("1, 2, 3, 4, 5, 6").run()
    tab.button(key="run sweep").click().run()
    assert "20 x 6 values are over the 100 points" in texts(fine(tab).error)
    assert not mine_of(tab).jobs


def test_the_linter_says_that_it_has_seen_the_lost_parts_too() -> None:
    tab = opened("cluster", Session(settings=LITE.but(cluster="hgx-h100:2", lost=("host0/nic1",))))
    assert "of the whole cluster; lost are host0/nic1." in texts(tab.info)
    assert "lost are" not in texts(opened("cluster", Session(settings=LITE)).info)


def test_the_timeline_with_and_without_barriers() -> None:
    tab = opened("timeline", Session(settings=LITE.but(cluster="hgx-h100:2")))
    free = float(figures(tab)["layer"].split()[0].replace(",", ""))
    tab.toggle(key="barriers").set_value(True).run()
    assert float(figures(fine(tab))["layer"].split()[0].replace(",", "")) >= free


def test_measured_reports_of_both_kinds_and_neither() -> None:
    tab = opened("measured")
    assert "No report yet" in texts(tab.info)
    for name, text in (("report.json", validation().model_dump_json()), ("run.json", json.dumps(run_json()))):
        tab.file_uploader(key="upload report").upload(name, text.encode(), "application/json").run()
        assert "median error of a phase" in figures(fine(tab))
    assert "Run of a plan" in texts(tab.subheader)
    tab.file_uploader(key="upload report").upload("x.json", b"{}", "application/json").run()
    assert "neither a report" in texts(fine(tab).warning)
    assert "Run of a plan" in texts(tab.subheader)


def test_measured_offers_the_servers_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab.json").write_text(validation().model_dump_json())
    monkeypatch.setenv("EPPLAN_APP_REPORTS", str(tmp_path))
    tab = opened("measured")
    tab.selectbox(key="picked report").set_value("lab.json").run()
    assert "Validation on lab" in texts(fine(tab).subheader)


def test_export_offers_files_commands_and_a_link() -> None:
    tab = opened("export", Session(settings=LITE))
    said = texts(tab.code)
    assert "epplan plan --model deepseek-v2-lite --cluster hgx-h100:1 --routing routing.json" in said
    assert "epplan evaluate plan.json linear round-robin eplb eplb-global --routing routing.json" in said
    assert "/plan?model=deepseek-v2-lite" in said
    tab.toggle(key="lossy").set_value(True).run()
    for engine in ("sglang", "trtllm", "omni"):
        tab.selectbox(key="engine").set_value(engine).run()
        assert not fine(tab).error


def test_one_session_never_sees_the_other() -> None:
    model = load_model("deepseek-v2-lite")
    one, other = opened("inputs", Session(settings=LITE)), opened("inputs", Session(settings=LITE))
    one.button_group(key="A routing source").set_value("a file").run()
    loads = logical_count_json(power_law(model, 1.0), model).encode()
    one.file_uploader(key="upload routing").upload("secret.json", loads, "application/json").run()
    reference = mine_of(fine(one)).settings.routing
    stolen = opened("plan", query=LITE.but(routing=reference).query())
    assert "files are not shared with a link" in texts(stolen.error)
    for page in PAGES:
        tab = shown(other, page)
        for elements in (tab.markdown, tab.caption, tab.code, tab.error):
            assert "secret.json" not in texts(elements)
    assert mine_of(other).settings == LITE
