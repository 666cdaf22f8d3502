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
