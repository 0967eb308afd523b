# Everything lives in .venv; nothing is installed outside it. `make ablation` and `make test` are the two commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Spinning OpenMP threads make small models crawl on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
# torch looks there for ninja when it compiles.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup ablation test check chaos bench docs clean

setup: $(READY)

# pip runs again only when what it would install has changed.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

ablation: $(READY)
	$(BIN)/python pipelines/ablation.py iddpm-cifar10 --preset tiny --yes $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: check
	$(BIN)/pytest $(ARGS)

# Kills, outages and damage, over small real runs, and a study as a job: not part of `make test`, for it takes long.
# What was found becomes a table also when something did not hold.
chaos: export PAPERTABLE_GUARANTEES = $(CURDIR)/build/guarantees.jsonl
chaos: $(READY)
	mkdir -p build && rm -f $(PAPERTABLE_GUARANTEES)
	$(BIN)/pytest -m chaos tests $(ARGS); ended=$$?; \
	$(BIN)/python -m tests.chaos.guarantees $(PAPERTABLE_GUARANTEES) docs/results/guarantees.md docs/results/guarantees.json; \
	exit $$ended

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	for file in benchmarks/[a-z]*.py; do PYTHONPATH=. $(BIN)/python $$file || exit 1; done

docs: $(READY)
	$(BIN)/pdoc --output-directory build/docs orchestrator diffusion pipelines

# Artifacts stay: they are hours of training. `rm -r artifacts` is yours to say.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
