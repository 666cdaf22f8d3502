"""plan.json: round trip, schema, and every way to break it that we could think of."""

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.assemble import assemble_plan
from planner.plan import SCHEMA_FILE, load_plan, schema_text
from planner.predict import predict
from planner.solve import solve
from planner.solve.one_layer import Budget
from tests.planner.definitions import PROFILE
from tests.planner.test_solve import random_workload
from topologies import BadInput, load_cluster


@pytest.fixture(scope="module")
def made():
    """A small solved plan with replicas and unequal shares, and its workload."""
    workload, slots_R = random_workload(1), np.full(16, 3)
    solution = solve(workload, PROFILE, slots_R, exchange="pairwise", workers=1, budget=Budget(swaps=5))
    plan = assemble_plan(
        workload, PROFILE, slots_R, solution, seed=0, inputs={"routing": "sha256:0"}, command="epplan plan"
    )
    return plan, workload, solution


@pytest.fixture
def document(made):
    plan = json.loads(made[0].to_json())
    del plan["sha256"]  # as who edits a plan does
    return plan


def test_round_trip_is_exact(made, tmp_path):
    plan, workload, solution = made
    plan.save(tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert any(layer.shares for layer in loaded.layers)
    for ours, theirs in zip(loaded.placements(), solution.placements, strict=True):
        assert ours.slots() == theirs.slots()
        assert ours.share_DS == pytest.approx(theirs.share_DS, abs=1e-12)
    again = predict("plan", loaded.placements(), workload, PROFILE, loaded.exchange)
    assert again.total_us == pytest.approx(plan.predicted.total_us, rel=1e-12)


def test_certificate_adds_up(made):
    certificate = made[0].certificate
    assert certificate.objective_us == pytest.approx(made[0].predicted.total_us)
    assert certificate.bound_us <= certificate.objective_us
    assert certificate.gap == pytest.approx(certificate.objective_us / certificate.bound_us - 1)
    assert certificate.complete


def test_schema_is_current_and_accepts_the_plan(document):
    assert SCHEMA_FILE.read_text() == schema_text(), "run: make schema"
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text()))


def refused(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def set_at(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    if value is None:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", "format: not a plan"),
        (["version"], 99, "version: '99' is unknown"),
        (["version"], None, "version: 'None' is unknown"),
        (["layers"], None, "layers: Field required"),
        (["layers"], [], "layers: Tuple should have at least 1 item"),
        (["layers", 0, "slots", 0, 0], 32, "layers.0.slots: expert 32 is not in 0..31"),
        (["layers", 0, "slots", 0, 0], -1, r"layers.0.slots.0.0: .*greater than or equal to 0 \(got '-1'\)"),
        (["layers", 0, "slots", 0, 0], 1.5, "layers.0.slots.0.0"),
        (["layers", 0, "slots", 0], [7, 7], "layers.0"),
        (["layers", 0, "slots", 0], None, "layers.0.slots: 15 ranks, but cluster.ranks has 16"),
        (["layers", 1, "layer"], 0, "layer numbers are not ascending"),
        (["layers", 1, "layer"], 7, "layer 7 in a model of 2 layers"),
        (["layers", 0, "extra"], 1, "layers.0.extra"),
        (["layers", 0, "shares"], {"99": [{"rank": 0, "share": [1.0, 1.0]}]}, "ranks of expert '99'"),
        (["layers", 0, "shares"], {"x": []}, "expert 'x'"),
        (["layers", 0, "shares"], {"²": []}, "layers.0.shares"),
        (["cluster", "ranks", 3, "rank"], 4, "cluster.ranks"),
        (["cluster", "ranks", 3, "domain"], 10**9, "domain"),
        (["workload", "slots_per_rank"], [3], "workload.slots_per_rank: 1 entries for 16 ranks"),
        (["workload", "tokens_per_rank"], 0, "workload.tokens_per_rank"),
        (["exchange"], "telepathy", "exchange"),
        (["model", "top_k"], 64, "model"),
        (["predicted", "layers", 0, "layer_us"], -5, "predicted.layers.0.layer_us"),
        (["certificate", "gap"], "small", "certificate.gap"),
    ],
)
def test_broken_fields_are_named(document, tmp_path, path, value, message):
    set_at(document, path, value)
    refused(tmp_path, json.dumps(document), message)


def test_shares_must_belong_and_sum_to_one(document, tmp_path):
    shares = next(layer["shares"] for layer in document["layers"] if layer["shares"])
    copies = next(iter(shares.values()))
    copies[0]["share"][0] += 0.1 if copies[0]["share"][0] < 0.5 else -0.1
    refused(tmp_path, json.dumps(document), "sum to")
    copies[0]["share"] = [0.5]
    refused(tmp_path, json.dumps(document), "1 shares for 2 domains")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "JSON nested too deeply"),
        ("[]", "format: not a plan .*found 'list'"),
        ('{"format": "epplan.plan", "version": NaN}', "NaN is not a number"),
        ('{"format": "a", "format": "b"}', "the key 'format' stands twice"),
        ("nonsense", "not valid JSON"),
        ('{"format": "epplan.plan", "version": 1' + "0" * 5000 + "}", "not valid JSON|version"),
    ],
)
def test_broken_text_is_refused(tmp_path, text, message):
    refused(tmp_path, text, message)


def test_truncated_anywhere_is_refused(made, tmp_path):
    text = made[0].to_json()
    for cut in range(0, len(text) - 2, len(text) // 50):
        refused(tmp_path, text[:cut], "plan.json")


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_one_change_is_read_or_refused_in_one_line(made, tmp_path, data):
    """Replace one value anywhere: the plan loads, or BadInput names the file; nothing else ever escapes."""
    document = {key: value for key, value in json.loads(made[0].to_json()).items() if key != "sha256"}
    node, trail = document, []
    while isinstance(node, dict | list) and node and (not trail or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        trail.append((node, key))
        node = node[key]
    parent, key = trail[-1]
    parent[key] = data.draw(scalars)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    try:
        load_plan(path)
    except BadInput as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)


def test_cluster_must_match(made):
    with pytest.raises(BadInput, match=r"16 ranks.*does not match hgx-h100:4 \(32 ranks"):
        made[0].check_cluster(load_cluster("hgx-h100:4"))
