# `make train` and `make test` are the two commands to start with: each does the set-up that it needs.

PYTHON ?= python3

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup train test format format-check lint types check bench bench-quality bench-eval bench-geometry bench-data bench-routers bench-kernels resources traffic mutants reproduction clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED)  ## make .venv and install the pinned versions

# The stamp is written last, so that a failed install is tried again; its age makes a repeated set-up instant.
$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("PathMoE needs Python 3.11 or newer; \
	$(PYTHON) is %d.%d. Name a newer one: make setup PYTHON=python3.12" % v[:2])'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned versions into $(VENV) (the first time takes minutes)"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: setup  ## train the tiny PathB4 model; goes on where it stopped
	@$(PY) train.py fit --config configs/tiny.yaml --config configs/routers/path_b4.yaml --ckpt_path last

test: setup  ## run the whole test suite
	@$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal --durations 8 --durations-min 5

format: setup  ## format the code and sort its imports
	@$(PY) -m ruff check --quiet --select I --fix .
	@$(PY) -m ruff format .

format-check: setup
	@$(PY) -m ruff format --check .

lint: setup  ## check the style
	@$(PY) -m ruff check .

types: setup  ## check the types
	@$(PY) -m mypy

check: format-check lint types test  ## everything that CI checks

bench: setup  ## time training steps against transformers' OLMoE
	@$(PY) -m pathmoe.bench.step

bench-quality: setup  ## train the OLMoE peer as long as the tiny run, at several learning rates
	@$(PY) -m pathmoe.bench.quality

bench-eval: setup  ## time paths and consistency of 7 M tokens from disk, and the recorder
	@$(PY) eval/bench/scale.py

bench-geometry: setup  ## time the geometry of 50,000 tokens, 4,096 wide
	@$(PY) eval/bench/geometry_scale.py

bench-data: setup  ## time the loader alone against training steps, and measure its memory
	@$(PY) -m pathmoe.bench.loader

bench-routers: setup  ## time training steps of every router in configs/routers
	@$(PY) -m pathmoe.bench.routers

bench-kernels: setup  ## test the kernels on an NVIDIA GPU, then time them; says so where there is none
	@$(PY) -m pathmoe.bench.kernels

resources: setup  ## compile the kernels for three GPUs; writes kernels/RESOURCES.md
	@$(PY) kernels/bench/resources.py

traffic: setup  ## count the bytes that the kernels touch, and what a layer takes at best
	@$(PY) kernels/bench/traffic.py

mutants: setup  ## plant bugs in the kernels and count those that the tests catch; writes kernels/MUTANTS.md
	@$(PY) kernels/bench/mutants.py

# Studies of which there are results.
APPENDICES := headline_tiny routers_tiny balance_tiny balance_batch_tiny block_size_tiny experts_per_token_tiny \
  iso_parameters_tiny learning_rates_tiny optimizers_tiny top_paths_tiny

reproduction: setup  ## write the tables of docs/reproduction/ from the results there
	@for study in $(APPENDICES); do \
	  $(PY) -m pathmoe_eval study --config configs/studies/$$study.yaml --report --results docs/reproduction/results \
	    --out runs/reproduction/$$study || exit 1; \
	  if grep -q '^Not finished' runs/reproduction/$$study/report.md; then \
	    echo "error: $$study has runs without results, which runs/reproduction/$$study/report.md names"; exit 1; \
	  fi; \
	  cp runs/reproduction/$$study/report.md docs/reproduction/$$study.md; \
	done
	@cp runs/reproduction/headline_tiny/picture.svg docs/headline.svg

clean:  ## remove caches and build products; keeps .venv and runs
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
