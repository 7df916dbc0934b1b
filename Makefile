# Habits. Each target does its own set-up: Python >= 3.11 and make are all that must be there.
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY) ## train on 4 workers for some minutes, lose one, recover, report; DATA=full downloads, DATA=<path> uses yours
	@$(BIN)/ddp demo --config configs/demo.json --data $(DATA)

test: $(READY) ## unit and integration tests, with real processes
	$(BIN)/pytest -q

lint: $(READY) ## style, types, and the arrows between the parts
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(READY) ## speed beside the peers, one table each (about 40 minutes)
	@VENV=$(VENV) benchmarks/run.sh

bench-gpu: $(READY) ## the same on a GPU; says so where there is none
	@$(BIN)/python benchmarks/gpu.py

clean: ## everything that these targets made
	rm -rf $(VENV) runs build *.egg-info trainer/*.egg-info

$(READY): requirements/install.sh requirements/bootstrap.txt requirements/locked.txt pyproject.toml
	@requirements/install.sh $(PYTHON) $(VENV) && touch $@

.PHONY: help demo test lint bench bench-gpu clean
.DEFAULT_GOAL := help
