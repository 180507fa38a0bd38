# `make help` lists the targets. The environment is .venv, installed from pinned requirements.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
CORES ?= all
WORKERS ?= 2
# A CPU-only machine saves gigabytes of CUDA wheels with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
BENCHED := results/benchmarks.jsonl
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS)
SNAKEMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m snakemake

# What ends a target whose run failed. A run that was killed leaves a lock behind; one that fails takes its own away.
LOCKED := { if ls .snakemake/locks/*.lock > /dev/null 2>&1; then \
	echo "error: this folder is locked: another run works here, or one was killed. If none does: make unlock"; fi; exit 1; }

.PHONY: help demo unlock patients publish test test-fast demos drills lint format bench clean

help:
	@echo "make demo    install, run the simulated cohort to its scorecard (results/demo/report.html)"
	@echo "make patients N=1000  generate patients by the published model: no training, no data (SHOW=3 prints three)"
	@echo "make publish NHDS=DIR train on NHDS 2010, publish model and cohort into published/nhds2010"
	@echo "make unlock  remove the lock that a killed run left (refused while a run works here)"
	@echo "make test    install, run all tests (some ten minutes on two cores; WORKERS=2 processes)"
	@echo "make test-fast  those that neither run Snakemake nor train a model (two minutes)"
	@echo "make demos   the whole workflow on each public demo that lies in ../shared/data"
	@echo "make drills  all tests on a real Slurm of one node, the long drills too (Debian: apt install slurm-wlm munge)"
	@echo "make lint    formatting and lint checks"
	@echo "make format  format the sources"
	@echo "make bench   measure reading, training, generating and evaluating"
	@echo "make clean   remove the demo's results (results/demo, raw/demo)"
	@echo
	@echo "PYTHON=python3.12   another interpreter, 3.11 or newer"
	@echo "CORES=2             fewer cores than the machine has"
	@echo "SEED=0 OUT=FILE.parquet AGES=FILE.csv CONSTRAINED=full  for make patients: seed, file to write (or .csv,"
	@echo "                    .csv.gz), ages and sexes of your own, no codes that the age and sex edits forbid"
	@echo "FORMAT=omop OUT=DIR  for make patients: a folder as meds, omop, mimic4 or mimic3 in place of a file"
	@echo "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	@echo "                    PyTorch without CUDA: saves gigabytes on a machine without a GPU"

demo: $(VENV)/.installed
	@echo "demo: snakemake evaluate_all (logs: results/demo/logs/)"
	@$(SNAKEMAKE) evaluate_all --cores $(CORES) --quiet host rules reason || $(LOCKED)
	@$(BIN)/python workflow_scripts/show_scorecard.py --results results/demo

unlock: $(VENV)/.installed
	@$(BIN)/python workflow_scripts/unlock.py

# N, SEED, SHOW, OUT, AGES, CONSTRAINED and FORMAT are options of the script; what is not set keeps its default.
patients: $(VENV)/.installed
	@$(BIN)/python workflow_scripts/generate_patients.py $(if $(N),--patients "$(N)") $(if $(SEED),--seed "$(SEED)") \
		$(if $(SHOW),--show "$(SHOW)") $(if $(OUT),--synthetic "$(OUT)") $(if $(AGES),--demographics "$(AGES)") \
		$(if $(CONSTRAINED),--constrained "$(CONSTRAINED)") $(if $(FORMAT),--format "$(FORMAT)")

# Trains for an hour or two if results/nhds2010 does not exist yet.
publish: $(VENV)/.installed
	@[ -n "$(NHDS)" ] || { echo "error: NHDS is not set; give the folder of NHDS10.PU.txt: make publish NHDS=DIR"; exit 1; }
	@$(SNAKEMAKE) publish --configfile config/nhds2010.yaml --config raw_dir="$(NHDS)" --cores $(CORES) \
		--quiet host rules reason || $(LOCKED)
	@$(BIN)/python workflow_scripts/copy_published.py --published results/nhds2010/published --target published/nhds2010
	@du -sh published/nhds2010/model published/nhds2010/cohort

test: $(VENV)/.installed-dev
	$(PYTEST)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not drill and not demos"

demos: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/test_sources_runs.py -m demos -v --durations=0

drills: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/slurm -m "drill or not drill" -v --durations=0

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(SNAKEMAKE) --lint

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile rules

bench: $(VENV)/.installed-dev
	@mkdir -p results && rm -f $(BENCHED)
	@for stage in preprocess training generation evaluation; do echo "== $$stage"; \
		$(BIN)/python benchmarks/$$stage.py --out $(BENCHED) || exit 1; done
	@$(BIN)/python benchmarks/figure.py $(BENCHED) results/performance.svg
	@echo "the same as JSON lines: $(BENCHED); seconds by size: results/performance.svg"

clean:
	rm -rf results/demo raw/demo

$(VENV)/.installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is missing or older than 3.11; give another one: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@if [ -z "$(TORCH_INDEX)" ] && [ "$$(uname)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
		echo "note: no NVIDIA GPU here, yet pip's own PyTorch may bring gigabytes of CUDA libraries."; \
		echo "      To save them: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu"; fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "install: pinned requirements into $(VENV) (some minutes, once)"
	@$(PIP) --requirement requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@echo "install: tools for tests and lint"
	@$(PIP) --requirement requirements-dev.txt
	@touch $@
