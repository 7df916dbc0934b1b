# Habits. Each target does its own set-up: Python >= 3.11 and make are all that must be there.
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
# all of CIFAR-10, for the measurements that need it: DATA=<a tar> or the one that lies beside this checkout
IMAGES := $(firstword $(wildcard $(filter %.tar %.tar.gz %.tgz,$(DATA)) ../shared/data/cifar10-jpeg.tar.gz))

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(READY) ## train on 4 workers for some minutes, lose one, recover, report; DATA=full downloads, DATA=<path> uses yours
	@$(BIN)/ddp demo --config configs/demo.json --data '$(DATA)'

test: $(READY) ## unit and integration tests, with real processes
	$(BIN)/pytest -q -n 4 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## style, types, and the arrows between the parts
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(PEERS) ## speed, start, recovery, checkpoints, barrier, memory, each beside its peers (about 2 hours on 2 cores); DATA=<tar> adds growth
	@$(BIN)/python benchmarks/throughput.py && $(BIN)/python benchmarks/throughput.py --compile && $(BIN)/python benchmarks/gradient_sum.py
	@$(BIN)/python benchmarks/startup.py && $(BIN)/python benchmarks/recovery.py && $(BIN)/python benchmarks/checkpoints.py
	@$(BIN)/python benchmarks/barrier.py && $(BIN)/python benchmarks/memory.py $(IMAGES:%=--source %)

bench-gpu: $(PEERS) ## what only a GPU can show: speed beside its limit, time to 94 % accuracy; says so where there is none
	@$(BIN)/python benchmarks/gpu.py $(IMAGES:%=--source %)

bench-operator: $(PEERS) ## the operator with 1,000 runs, beside Kubeflow's own, on the cluster of kind-up
	@$(BIN)/python benchmarks/operator_scale.py

chaos: $(READY) ## disturb real runs in every way we know of; prints one table (at most 30 minutes on 2 cores); CASES="rank agent_0" for some
	@$(BIN)/python tests/chaos/run.py $(CASES)

images: ## the images of trainer and operator; see docs/kubernetes.md
	images/build.sh

kind-up: images ## a local cluster with the training operator and the images
	tests/e2e/kind-up.sh

kind-down: ## and away with it
	kind delete cluster --name ddp-e2e

e2e: $(READY) ## install, kill, upgrade and uninstall on that cluster; prints one table
	$(BIN)/python tests/e2e/run.py

manifests: $(READY) ## everything generated from the chart and the schema
	$(BIN)/python manifests/render.py

clean: ## everything that these targets made, but for runs/: checkpoints are yours to remove
	rm -rf $(VENV) build *.egg-info trainer/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): requirements/install.sh requirements/bootstrap.txt requirements/locked.txt pyproject.toml
	@requirements/install.sh $(PYTHON) $(VENV) && touch $@

$(PEERS): $(READY) requirements/bench.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv --quiet pip install --no-deps --require-hashes -r requirements/bench.txt && touch $@

.PHONY: help demo test lint bench bench-gpu bench-operator chaos images kind-up kind-down e2e manifests clean
.DEFAULT_GOAL := help
