# Two commands do everything on a fresh clone: `make demo` and `make test`.
# They need Python 3.11, make and a package registry.

PYTHON ?= python3.11
# Modules are compiled when they are first imported: compiling all of them takes minutes. Where the environment
# forbids to keep what was compiled, every process compiles torch and Ray again, which trebles the tests' time.
export PYTHONDONTWRITEBYTECODE :=
PIP := -m pip install --quiet --no-compile --disable-pip-version-check
BIN := .venv/bin
# Environments are installed side by side, and tests run in lanes beside each other.
MAKEFLAGS += --jobs=3
DEMO := $(BIN)/python -m kit.cli.demo --device-python $(CURDIR)/.venv-device/bin/python
SOURCES := kit jobs serve edge tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo check fix test test-journeys test-fitting test-batch test-devices test-endpoint test-others test-unit bench clean

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

.venv-clients/ready: tests/clients/requirements.txt  # clients of others, which want an older protobuf
	@test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python $(PIP) --no-compile --no-deps -r tests/clients/requirements.txt
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

# The tests run in lanes beside each other, since what starts Rays and servers waits for half its time. A lane's
# output comes at its end.
FITTING := $(wildcard tests/cluster/test_tune*.py tests/cluster/test_train*.py tests/cluster/test_compress*.py)
BATCH := $(filter-out $(FITTING),$(wildcard tests/cluster/test_*.py))
ENDPOINT := $(wildcard tests/system/test_serve*.py tests/system/test_clients.py)
JOURNEYS := $(foreach each,demo walkthrough submit,tests/system/test_$(each).py)
DEVICES := $(foreach each,agent* crash* flash* fleet* hard* install keyrings* notices pull* soak tamper,$(wildcard tests/system/test_$(each).py))
OTHERS := $(filter-out $(ENDPOINT) $(JOURNEYS) $(DEVICES),$(wildcard tests/system/test_*.py))
# The longest begin first.
LANES := test-fitting test-journeys test-others test-devices test-batch test-endpoint test-unit
lane = @mkdir -p .pytest_cache; $(BIN)/python -m pytest $(2) >.pytest_cache/$(1).log 2>&1; status=$$?; \
	cat .pytest_cache/$(1).log; exit $$status

# Threads that wait shall sleep: by themselves they spin, which costs 40 % of an export where lanes share two cores.
$(LANES): export OMP_WAIT_POLICY := PASSIVE

test: $(LANES)  ## all tests

test-fitting: setup
	$(call lane,fitting,$(FITTING))

test-batch: setup
	$(call lane,batch,$(BATCH))

test-unit: setup
	$(call lane,unit,tests/unit)

test-endpoint: setup .venv-clients/ready
	$(call lane,endpoint,$(ENDPOINT))

test-journeys: setup
	$(call lane,journeys,$(JOURNEYS))

test-devices: setup .venv-tflite/ready
	$(call lane,devices,$(DEVICES))

test-others: setup .venv-oms/ready .venv-tflite/ready
	$(call lane,others,$(OTHERS))

bench: setup  ## the figures the documents show: ours beside a bare loop, interleaved
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/tune.py
	$(BIN)/python benchmarks/batch
	$(BIN)/python benchmarks/batch --memory
	$(BIN)/python benchmarks/batch --small
	$(BIN)/python benchmarks/serve --all
	$(BIN)/python benchmarks/export
	$(BIN)/python benchmarks/export --time
	.venv-device/bin/python benchmarks/agent
	$(BIN)/python benchmarks/fleet
	$(BIN)/python benchmarks/fleet --simulate

clean:  ## remove the environments and caches
	rm -rf .venv .venv-device .venv-oms .venv-tflite .venv-clients .mypy_cache .pytest_cache .ruff_cache .hypothesis .bench
