# Two commands on a fresh machine with git, make and python3-venv: make run, make test.
# Recipes name files relative to this folder, so spaces in the path to it do no harm.

# The newest of the Pythons that the project supports and that can make an environment.
USABLE := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(USABLE)' >/dev/null 2>&1 && echo $$python && break; done)
# More options for pip, such as --extra-index-url for a CUDA build of torch.
PIP ?=
# Tests at the same time; each file's tests stay together.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup run up down test lint types bench bench-convert bench-analyze bench-train bench-cluster clean
.DEFAULT_GOAL := help

help:
	@echo "make run    set up, then run the whole pipeline on a small synthetic data set"
	@echo "make test   set up, then lint, check types and run all tests"
	@echo "make up     keep the service (server, work pool, worker) running; make down ends it"
	@echo "make bench  time conversion against zarr + scipy + nibabel, analysis and training data against MONAI"
	@echo "            (one of them: make bench-convert, bench-analyze, bench-train or bench-cluster, PARTS=\"speed memory ...\")"
	@echo "make lint   ruff;  make types   mypy;  make clean   remove the environment and work/"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(USABLE)' || { \
	echo "$(if $(PYTHON),$(PYTHON) is not,There is no) Python 3.11, 3.12 or 3.13 with the module ensurepip" \
	"(Debian: the package python3-venv); name one: make setup PYTHON=<its path>" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/python -m deployments.local run

up: $(STAMP)
	$(BIN)/python -m deployments.local up

down: $(STAMP)
	$(BIN)/python -m deployments.local down

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(STAMP)
	$(BIN)/python -m mypy

test: lint types
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=40

# BENCH="speed memory scaling overhead" chooses; all of them take three quarters of an hour and 4 GB of disk.
bench: $(STAMP)
	$(BIN)/python -m tests.bench.convert
	$(BIN)/python -m tests.bench.analyze
	$(BIN)/python -m tests.bench.train
	$(BIN)/python -m tests.bench.cluster

bench-convert bench-analyze bench-train bench-cluster: bench-%: $(STAMP)
	$(BIN)/python -m tests.bench.$* $(PARTS)

clean:
	rm -rf $(VENV) work
