# The two commands of the README, complete on a machine that has git, make and Python 3.11+.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  ?= 2.13.0
# exact versions of what the tests install, where they were locked for this Python; requirements/lock.py makes the file
LOCK   := $(shell $(PYTHON) -c 'import sys; print("-c requirements/test.lock" * (sys.version_info[:2] == (3, 11)))')

.PHONY: demo train test lint bench schema clean

demo: $(VENV)/torch.ready          ## plan the bundled trace, compare, and run a plan on 4 local ranks
	$(BIN)/epplan plan --tokens-per-rank 16384 -o plan.json
	$(BIN)/epplan evaluate plan.json linear round-robin eplb eplb-global
	$(BIN)/epplan plan --cluster examples/two_small_hosts.yaml --tokens-per-rank 16384 -o plan4.json
	$(BIN)/epplan run plan4.json --routing planner/bundled/tiny_moe/skewed.npz --tokens-per-rank 1024

train: $(VENV)/test.ready          ## train a small MoE on 2 ranks: plan, record, re-plan, migrate
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 examples/train_moe.py

test: $(VENV)/test.ready lint      ## lint, types, and all tests that need no special machine
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

lint: $(VENV)/test.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/planner.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# torch first and by name: a version range would fetch a build with gigabytes of CUDA libraries
$(VENV)/torch.ready: $(VENV)/planner.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[executor]"
	touch $@

$(VENV)/test.ready: $(VENV)/torch.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCK) -e ".[app,test]"
	touch $@

bench: $(VENV)/test.ready          ## measure everything that this machine can, into docs/benchmarks.md
	$(BIN)/python -m benchmarks.all

schema: $(VENV)/planner.ready      ## bring the committed JSON Schema of plan.json up to date
	$(BIN)/python -c "from planner.plan import SCHEMA_FILE, schema_text; SCHEMA_FILE.write_text(schema_text())"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
