# Every target works in a fresh clone with nothing installed but Python 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup services demo test lint format test-slow bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## make the virtual environment

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "tomoray needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; run make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

services: ## install the servers that some tests start, if root and apt-get are there
	.ci/services

demo: $(VENV)/.installed ## simulate, train, pick, score and draw, in about ten minutes
	$(BIN)/tomoray demo jobs/demo.toml

test: $(VENV)/.installed lint ## lint, types and tests
	$(BIN)/python -m pytest -m 'not slow'

lint: $(VENV)/.installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.installed ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(VENV)/.installed ## long studies, large volumes, nodes that are lost, and every small job sent to a cluster
	$(BIN)/python -m pytest -m slow

bench: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
bench: $(VENV)/.installed ## every speed as a ratio, on an idle machine, for more than an hour
	for name in ceilings picking find_peaks co_training_step ray_share pick_pipeline pick_many crops slow_storage stream_memory shuffle; do \
	    echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py || exit 1; done

clean: ## remove the environment and the demo
	rm -rf $(VENV) demo bench
