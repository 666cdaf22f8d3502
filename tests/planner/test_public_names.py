"""What `planner` and its sub-packages export is a decision: change these lists with it."""

import ast
import inspect
import re
from pathlib import Path

import planner
from planner import exporters, importers

JOBS = {"Cluster", "MoEModel", "Plan", "Routing", "solve"}  # the names that issue 9 promises to jobs


def test_names_of_planner():
    assert set(planner.__all__) >= JOBS
    verbs = {
        "assemble_plan", "build_workload", "export_plan", "import_plan", "load_cluster", "load_model", "load_plan",
        "load_profile", "load_routing", "predict", "read_placement", "slots_of_ranks", "solve",
    }  # fmt: skip
    assert set(planner.__all__) >= verbs
    assert set(exporters.__all__) == {"TARGETS", "Exported", "Loss", "export_plan"}
    assert set(importers.__all__) == {"FORMATS", "Imported", "import_plan", "read_placement"}


def test_every_public_name_exists_and_is_documented():
    for module in (planner, exporters, importers):
        assert sorted(module.__all__, key=lambda name: (not name.isupper(), name)) == list(module.__all__)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), name


def test_what_is_imported_is_exported():
    tree = ast.parse(Path(planner.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported - {"find_spec"} == set(planner.__all__)


def test_targets_and_formats_are_the_same():
    assert sorted(exporters.TARGETS) == sorted(importers.FORMATS)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in exporters.TARGETS)
