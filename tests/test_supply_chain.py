"""What the code may not do: run what a file says, talk to the network, or listen to more than this machine."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.commands import app_

ROOT = Path(__file__).parents[1]
PACKAGES = ("topologies", "planner", "executor", "app", "examples", "benchmarks")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.load",
    "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "pandas.read_pickle",
    "pd.read_pickle", "runpy.run_path", "pickle.Unpickler", "xml.etree.ElementTree.parse", "ElementTree.fromstring",
}  # fmt: skip
SAFE_LOADERS = {"_Loader"}  # topologies.cluster_file: the safe loader, without keys that stand twice
ALLOWED = {  # what our own parent and child processes send each other through a pipe
    ("executor/launch.py", "pickle.loads"),
    ("executor/worker.py", "pickle.loads"),
}


def calls(path: Path):
    """Yield (name, call) of every call in a file whose function has a plain name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str:
    return next((ast.unparse(entry.value) for entry in call.keywords if entry.arg == name), "")


def problems(path: Path) -> list[str]:
    found = []
    for name, call in calls(path):
        where = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
        if name in FORBIDDEN and (str(path.relative_to(ROOT)), name) not in ALLOWED:
            found.append(where)
        if name == "yaml.load" and keyword(call, "Loader") not in SAFE_LOADERS:
            found.append(f"{where} with the loader {keyword(call, 'Loader')!r}")
        if name == "torch.load" and keyword(call, "weights_only") != "True":
            found.append(f"{where} without weights_only=True")
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") not in ("", "False"):
            found.append(f"{where} with pickles")
        if keyword(call, "shell") not in ("", "False"):
            found.append(f"{where} with a shell")
    return found


def test_nothing_is_executed_from_files():
    assert MODULES
    found = [problem for path in MODULES for problem in problems(path)]
    assert found == []


def test_the_only_unpickler_knows_four_names():
    """`planner.readers.torch_zip` derives from pickle.Unpickler, with lists of names and instructions."""
    derived = [
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases)
    ]
    assert derived == ["planner/readers/torch_zip.py"]


GUARD = """
import sys
met = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request") or (
        event in ("socket.connect", "socket.sendto", "socket.bind") and isinstance(arguments[1], tuple)
    ):
        met.append((event, arguments[1:]))
        raise RuntimeError("no network here")
sys.addaudithook(watch)
"""
IMPORTS = """
import importlib, pkgutil
for name in ("topologies", "planner", "executor", "app"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if module.name not in ("app.whatif.main",):  # a page, which runs where it is imported
            importlib.import_module(module.name)
"""
RUN = """
import socket
try:
    socket.create_connection(("192.0.2.1", 9), timeout=1)
except RuntimeError:
    met.clear()
else:
    raise SystemExit("the guard does not work")
from app.main import cli
cli.main(["plan", "--time-limit", "1", "--workers", "1", "-o", sys.argv[1]], standalone_mode=False)
cli.main(["evaluate", sys.argv[1], "linear"], standalone_mode=False)
cli.main(["topology", "show", "hgx-h100:2"], standalone_mode=False)
"""


@pytest.mark.parametrize("code", [IMPORTS, RUN], ids=["import", "run"])
def test_no_network(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GUARD + code + "sys.exit(str(met) if met else 0)", str(tmp_path / "plan.json")],
        capture_output=True, text=True, timeout=400, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_app_listens_to_this_machine_alone(monkeypatch):
    pytest.importorskip("streamlit")
    started = []
    monkeypatch.setattr(app_.os, "execve", lambda *given: started.append(given))
    app_.app.main(["--no-browser", "--port", "8599"], standalone_mode=False)
    (_, command, _), *_ = started
    assert "--server.address=127.0.0.1" in command
    assert "--browser.gatherUsageStats=false" in command
    assert "--server.enableXsrfProtection=true" in command


def test_the_lock_holds_what_the_project_asks_for():
    """Every requirement of pyproject.toml stands in requirements/test.lock, in a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements" / "test.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["executor"], *extras["app"], *extras["test"]]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not locked; run requirements/lock.py"
        assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement} but {locked[name]}"
