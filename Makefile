# `make` alone lists what there is. Everything runs from .venv; no environment need be active.

PYTHON ?= python3
SEEDS ?= 10000
HANDOVERS ?= 200
SECONDS ?= 60
LAB_VM_ARGS ?= -k copied_ahead tests/lab/test_containers.py

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
CODE := src lab tests conformance

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab-setup lab-test lab-vm check format conformance mutants bench soak fuzz siege docs build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv with quicferry in it, editable, and the tools for its development

$(READY): pyproject.toml lab/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'quicferry needs Python 3.11 or newer as $(PYTHON); name another one: make PYTHON=python3.13 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'this Python cannot make virtual environments; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VENV_PYTHON) -m pip install --quiet --editable . --editable lab --group dev
	@touch $@

demo: $(READY) ## move a live server while its clients work (DEMO_ARGS="--protocol mixed ...")
	$(VENV)/bin/quicferry demo $(DEMO_ARGS)

test: $(READY) ## run the tests (PYTEST_ARGS="-k ...")
	$(VENV_PYTHON) -m pytest -n 2 $(PYTEST_ARGS)

lab-setup: $(READY) ## make the laboratory's system from Debian's packages, once (root)
	$(VENV)/bin/quicferry lab setup

lab-test: $(READY) ## run the tests that need the laboratory: hosts, links, containers (root; PYTEST_ARGS="-k ...")
	$(VENV_PYTHON) -m pytest -m lab -rs $(PYTEST_ARGS)

lab-vm: $(READY) ## run those that need another kernel, in a virtual machine (root; LAB_VM_ARGS="-k ... tests/lab")
	$(VENV)/bin/quicferry lab vm build
	$(VENV)/bin/quicferry lab vm test -- $(LAB_VM_ARGS)

check: $(READY) ## check format, style and types
	$(VENV_PYTHON) -m ruff format --check $(CODE)
	$(VENV_PYTHON) -m ruff check $(CODE)
	$(VENV_PYTHON) -m mypy

format: $(READY) ## format the code, and mend what can be mended
	$(VENV_PYTHON) -m ruff check --fix $(CODE)
	$(VENV_PYTHON) -m ruff format $(CODE)

conformance: $(READY) ## run aioquic's own tests on quicferry's connection, migration off and on
	$(VENV_PYTHON) conformance/run.py $(CONFORMANCE_ARGS)

mutants: $(READY) ## try mistakes in the code: do the tests notice? (hours; PART=protocol, MUTANTS_ARGS="--again")
	PYTHONPATH=tests nice -n 10 $(VENV_PYTHON) -m mutants $(PART) $(MUTANTS_ARGS)

bench: $(READY) ## measure (BENCH_ARGS="...")
	$(VENV)/bin/quicferry bench $(BENCH_ARGS)

soak: $(READY) ## hand a server over HANDOVERS times; simulate seeded migrations (SEEDS=10000, 1200..1300 or forever)
	$(VENV)/bin/quicferry soak handovers --handovers $(HANDOVERS)
	$(VENV)/bin/quicferry soak migrations --seeds $(SEEDS)

fuzz: $(READY) ## feed everything that listens with inputs from a seed (SECONDS=600 SEED=1 TARGETS="messages ...")
	cd tests && ../$(VENV_PYTHON) -W ignore -m fuzzing --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(TARGETS)

siege: $(READY) ## attack servers that have a good client, and see what it notices (SIEGE_ARGS="--seconds 5 rapid-reset ...")
	$(VENV_PYTHON) -m quicferry_lab.siege $(SIEGE_ARGS)

docs: $(READY) ## draw the state machines from the code, into docs/state-machines.md
	$(VENV_PYTHON) -m quicferry_lab.machines > $(READY).machines
	mv $(READY).machines docs/state-machines.md

build: $(READY) ## build the source distributions and the wheels of quicferry and its laboratory into dist/
	rm -rf dist
	$(VENV_PYTHON) -m build --quiet
	$(VENV_PYTHON) -m build --quiet --outdir dist lab

clean: ## remove everything that make has made
	rm -rf $(VENV) build dist src/*.egg-info lab/build lab/src/*.egg-info .conformance .mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
