.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint schema clean

PYTHON ?= python3
SEED ?= 0
ARGS ?=
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
PINS := setup.cfg pyproject.toml constraints.txt
CHECKED := online_aug cache tools train.py

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(VENV)/.runtime  ## Birds with and without SGD-Mix, no download of data or model: SEED=0 ARGS="key=value"
	$(RUN) -m online_aug compare quickstart --seeds 1 run.seed=$(SEED) $(ARGS)

test: $(VENV)/.test  ## Run the tests but the nightly ones: WORKERS=2 ARGS="tests/config -x"
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not nightly" $(ARGS)

lint: $(VENV)/.dev  ## Check format, style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy --strict $(CHECKED)

schema: $(VENV)/.runtime  ## Write configs/schema.json from the classes of the configuration
	$(RUN) -m online_aug schema > configs/schema.json

clean:  ## Remove the environment and what tools left; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Each stamp stands for one set of requirements, installed with the tested versions.
$(VENV)/.runtime: $(PINS) | $(RUN)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(PINS) | $(RUN)
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.dev: $(PINS) | $(RUN)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.runtime

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON must be Python 3.11 or newer, got $(PYTHON) ($$($(PYTHON) --version 2>&1));" \
	    "name another: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
