# Each target sets up .venv if needed. Only Python 3.11 or later has to be installed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test faults fmt lint fuzz bench dashboards pictures schemas clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[worker,dev]'
	touch $@

demo: $(READY)  ## run Redis, a worker and an agent for half a minute, then print the results
	$(BIN)/sqe-hrm demo

# For two cores. Unit tests compute, a process for each core; the others mostly wait for servers and
# workers, so there is a third. A process that is done takes tests over from the others.
test: $(READY)  ## run every test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/unit
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal tests/integration tests/faults

faults: $(READY)  ## make every fault in full size, and account for each message
	$(BIN)/python -m tests.faults

fmt: $(READY)  ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(READY)  ## feed 120,000 damaged inputs to every reader; SEED=… repeats a run
	$(BIN)/python -m tests.fuzz $(if $(SEED),--seed $(SEED))

bench: $(READY)  ## measure speed ratios, side by side in one run
	$(BIN)/python -m tests.benchmarks

dashboards: $(READY)  ## write Grafana's dashboards from their builders
	$(BIN)/python -m deploy.grafana

pictures: $(READY)  ## draw the dashboards of a real run of 20 minutes
	$(BIN)/python -m tests.pictures

schemas: $(READY)  ## publish the JSON Schemas from the models
	$(BIN)/sqe-hrm schema --output schemas/v1

clean:  ## remove everything that the targets created
	rm -rf $(VENV) .sqe .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist \
		worker/client_package/build worker/client_package/src
