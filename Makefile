# Every target sets up what it needs. `make` alone lists them.
# The Python of the environments; if none is given, the newest that works here.
PYTHON ?=
# Use the CUDA lock if a GPU is present, else the CPU lock; `make DEVICE=cpu …` overrides.
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# The driver's major version, and the oldest one that the torch in the lock supports.
DRIVER = $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1 | grep -x '[0-9]*')
OLDEST_DRIVER := 580
RUN := .venv/bin/python
# Python compiles modules on first import. Letting pip compile all of them takes longer than the rest of the
# installation. Progress is shown on a terminal but not in a log.
PIP := $(RUN) -m pip install --no-deps --no-compile --disable-pip-version-check $(shell test -t 2 || echo --quiet)
# With this variable set, each of the hundred processes that the tests start would compile the same libraries again.
unexport PYTHONDONTWRITEBYTECODE
TORCH := $(shell grep '^torch==' requirements/$(DEVICE).txt)
ACTIVATE := "activate with  source .venv/bin/activate ; then  rl-engine  lists the commands"
SIZE := $(if $(filter cpu,$(DEVICE)),3 GB on disk,10 GB on disk)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types unit drills claims lock embedded docs clean python

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/project ## train the embedded example, before → after in minutes; ARGS="seed=1" adds settings
	$(RUN) -m rl_engine.train --config quickstart.yaml --overwrite --keep-old $(ARGS)
	@echo $(ACTIVATE)

test: lint ## lint, types and tests
	$(MAKE) -j 2 types unit

lint: .venv/tools
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/tools
	.venv/bin/mypy

# Three workers of one thread each (tests/conftest.py), because they often wait for processes that they started; one
# worker on a card, where the engines of several would not fit.
unit: .venv/compiled
	$(RUN) -m pytest -n $(if $(filter cpu,$(DEVICE)),3,1) --dist loadfile --no-loadscope-reorder --durations=25 -m "not drill"

# Each sweep resumes where it stopped.
CLAIMS := batch_rank starts batch second_task second_task_rl rates layers numbers capacity layers_sft
claims: .venv/project ## test the claims of LoRA Without Regret on the embedded model (hours)
	for name in $(CLAIMS); do $(RUN) -m rl_engine.sweep --config sweep_$$name.yaml output_dir=runs/claims/$$name || exit; done
	for name in numbers batch_rank; do $(RUN) -m benchmarks.claims runs/claims/$$name/summary.json || exit; done
	for name in second_task second_task_rl; do $(RUN) -m benchmarks.second_task runs/claims/$$name || exit; done

drills: .venv/tools ## kill, fill, starve and cut off whole runs (forty minutes on two cores); docs/reliability.md
	$(RUN) -m pytest tests/drills -m drill -s

lock: .venv/tools ## regenerate requirements/*.txt from pyproject.toml
	requirements/lock.sh

embedded: .venv/project ## rebuild the embedded model from random weights, in runs/embedded (half an hour)
	$(RUN) -m rl_engine.sft.embedded

# No --quiet: it hides warnings and keeps --strict from treating them as errors.
docs: .venv-docs/tools ## build the documentation into site/, to be opened in a browser; what is broken is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "open site/index.html"

clean: ## remove the environments and caches, keep runs/
	rm -rf .venv .venv-docs site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Also if everything is installed, so that no other Python than the given one is used without a word.
python:
	@requirements/environment.sh .venv "$(PYTHON)"

# The CPU build of torch has its own version (+cpu), which the public index lacks. PyTorch's index is used for torch
# only, and only if pip's configured sources lack it: pip would retry an unreachable index for every package.
.venv/engine: requirements/$(DEVICE).txt | python
	@test $(DEVICE) = cpu || test "$(DRIVER)" = "" || test "$(DRIVER)" -ge $(OLDEST_DRIVER) || { \
	echo "nvidia-smi answers with driver $(DRIVER), and the libraries for CUDA 13 that would be installed need $(OLDEST_DRIVER)" >&2; \
	echo "or newer: update the driver, or give DEVICE=cpu, as in  make DEVICE=cpu quickstart" >&2; \
	exit 2; }
	@echo "setting up .venv for $(DEVICE): $$(grep -c == $<) packages, $(SIZE), two to five minutes"
	$(PIP) "$(TORCH)" || { test $(DEVICE) = cpu && $(PIP) --index-url $(TORCH_CPU_INDEX) "$(TORCH)"; }
	$(PIP) -r requirements/$(DEVICE).txt
	@touch $@

# The project itself, so that its commands work from any directory.
.venv/project: .venv/engine pyproject.toml
	$(PIP) --quiet --no-build-isolation --editable .
	@touch $@

.venv/tools: .venv/project requirements/dev.txt
	@echo "adding the tools of the tests: $$(grep -c == requirements/dev.txt) packages, about a minute"
	$(PIP) -r requirements/dev.txt
	@touch $@

# Python compiles what the tests import, half a minute of work: once here, beside mypy, and not once in every worker.
# If something cannot be imported, the tests themselves say what.
.venv/compiled: .venv/tools
	$(RUN) -m pytest --collect-only --quiet >/dev/null || true
	@touch $@

# A separate environment: the API reference is extracted from the sources and needs none of their imports.
.venv-docs/tools: requirements/docs.txt
	@echo "setting up .venv-docs: $$(grep -c == $<) packages, half a minute"
	rm -rf .venv-docs
	@requirements/environment.sh .venv-docs "$(PYTHON)"
	.venv-docs/bin/python -m pip install --no-deps --no-compile --disable-pip-version-check --quiet -r $<
	@touch $@
