# Two commands do everything on a fresh clone: `make demo` and `make test`.
# They need Python 3.11, make and a package registry.

PYTHON ?= python3.11
PIP := -m pip install --quiet --disable-pip-version-check
BIN := .venv/bin
# The environments are installed side by side.
MAKEFLAGS += --jobs=4
DEMO := $(BIN)/python -m kit.cli.demo --device-python $(CURDIR)/.venv-device/bin/python
SOURCES := kit jobs serve edge tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo check fix test test-cluster test-others bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/ready .venv-device/ready  ## install everything into .venv, and a device's share into .venv-device

.venv/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about 3 GB, some minutes the first time)"
	@$(BIN)/python $(PIP) torch==2.13.0
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[all,dev]'
	@touch $@

.venv-device/ready: pyproject.toml constraints.txt
	@test -x .venv-device/bin/python || $(PYTHON) -m venv .venv-device
	@echo "installing into .venv-device (no Ray, no torch)"
	@.venv-device/bin/python $(PIP) -c constraints.txt -e '.[litert,openvino]'
	@touch $@

.venv-oms/ready:  # the official verifier of model signatures, which shares no environment with us
	@$(PYTHON) -m venv .venv-oms
	@.venv-oms/bin/python $(PIP) model-signing==1.1.1 pyopenssl==26.4.0
	@touch $@

.venv-tflite/ready: pyproject.toml  # an old device: tflite-runtime 2.14 and numpy 1
	@$(PYTHON) -m venv .venv-tflite
	@.venv-tflite/bin/python $(PIP) -e '.[tflite-runtime]'
	@touch $@

demo: setup  ## train on real data, then answer in a batch, over HTTP and on a device
	@$(DEMO)

check: .venv/ready  ## formatting, lint, types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

fix: .venv/ready  ## format and repair what can be repaired
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

test: test-cluster test-others  ## all tests

# What starts Rays runs beside what starts servers, since each waits for half its time; its output comes at its end.
CLUSTER_LOG := .pytest_cache/cluster.log
test-cluster: setup
	@mkdir -p .pytest_cache
	@$(BIN)/python -m pytest tests/cluster >$(CLUSTER_LOG) 2>&1; status=$$?; cat $(CLUSTER_LOG); exit $$status

test-others: setup .venv-oms/ready .venv-tflite/ready
	$(BIN)/python -m pytest tests/system tests/unit

bench: setup  ## the figures the documents show: ours beside a bare loop, interleaved
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/tune.py
	$(BIN)/python benchmarks/batch
	$(BIN)/python benchmarks/batch --memory
	$(BIN)/python benchmarks/batch --small
	folder=$$(mktemp -d) && $(DEMO) --folder $$folder >/dev/null && $(BIN)/python benchmarks/serve.py $$folder/digits digits

clean:  ## remove the environments and caches
	rm -rf .venv .venv-device .venv-oms .venv-tflite .mypy_cache .pytest_cache .ruff_cache .hypothesis .bench
