"""What a command loads before it does its work: nothing that it does not use."""

import subprocess
import sys

IN_A_NEW_PROCESS = """
import gc, sys
from app.main import main
sys.argv = ["epplan", "plan", "--time-limit", "0", "--json"]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print(gc.isenabled(), gc.get_freeze_count() > 0, file=sys.stderr)
print(*sorted({name.split(".")[0] for name in sys.modules} | set(sys.modules)), file=sys.stderr)
"""


def test_a_plan_without_a_search_loads_no_solver_and_collects_its_garbage():
    command = [sys.executable, "-c", IN_A_NEW_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *_, collecting, modules = done.stderr.splitlines()
    assert collecting == "True True"
    loaded = set(modules.split())
    assert "planner.solve.plan_layers" in loaded
    assert not loaded & {"pulp", "highspy", "joblib", "pandas", "networkx", "scipy.optimize", "streamlit", "torch"}


HELP_OF_ALL_VERBS = """
import sys

class Missing:
    names = {"torch", "pyroute2", "streamlit", "plotly", "transformers", "pyarrow", "safetensors", "playwright"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(name, name=name)

import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] in Missing.names else find(name, *more)
sys.meta_path.insert(0, Missing())
from click.testing import CliRunner
from app.main import COMMANDS, cli
for words in ([], *([verb] for verb in COMMANDS)):
    found = CliRunner().invoke(cli, [*words, "--help"])
    assert found.exit_code == 0, (words, found.output, found.exception)
    print(found.output.splitlines()[0])
"""


def test_the_help_needs_none_of_the_extras():
    """Whoever only plans has neither torch nor pyroute2, and `epplan --help` lists all verbs."""
    command = [sys.executable, "-c", HELP_OF_ALL_VERBS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == 17
