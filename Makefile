# Every target works alone on a fresh machine with Python 3.11 or later: it makes .venv when there is none.
# `VENV=/path/to/venv make test` uses (and installs into) another environment.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
WORKERS ?= 2

# One process, one thread: workers that share two cores only wait for each other otherwise. No downloads.
QUIET_CORES := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
OFFLINE := HF_HUB_OFFLINE=1

# The stamp names this checkout: an environment that another checkout has installed itself into is installed again.
STAMP := $(VENV)/.graphgrow-$(firstword $(shell pwd | cksum))

.PHONY: install demo test lint format bench pins clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing graphgrow into $(VENV) (a minute or more the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.graphgrow-*
	@touch $@

demo: $(STAMP)
	$(OFFLINE) PATH=$(BIN):$$PATH $(BIN)/python examples/demo.py

test: $(STAMP)
	$(OFFLINE) $(QUIET_CORES) PATH=$(BIN):$$PATH $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(OFFLINE) PATH=$(BIN):$$PATH $(BIN)/python -m benchmarks $(ARGS)

# The versions in the environment, for constraints.txt (the header stays; local suffixes such as +cpu go).
pins: $(STAMP)
	grep '^#' constraints.txt > constraints.new
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude wheel \
	  | sed -E 's/\+[a-z0-9.]+$$//' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
