# Everything starts from Python 3.11 or newer and make; the rest is set up below .venv from the lock file.
PYTHON ?= python3
JOBS ?= auto
BACKEND ?= processes
UV := .uv/bin/uv
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-processes demo-kubernetes test test-conformance test-kubernetes test-kubernetes-parts test-kubernetes-fleet test-kubernetes-whole check unit e2e fuzz format protos docs bench bench-kubernetes lock clean

help: ## Show what can be made
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV):
	@echo "Setting up uv ..."
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1"

.venv/.ready: requirements.lock pyproject.toml | $(UV)
	@echo "Setting up .venv from requirements.lock ..."
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

setup: .venv/.ready ## Set up the virtual environment (all other targets do so too)

demo: .venv/.ready ## Lease a classifier of handwritten digits, use it, watch it expire; BACKEND=kubernetes: on a test cluster
	@$(MAKE) --no-print-directory demo-$(BACKEND)

demo-processes:
	@$(BIN)/python -m examples.digits.demo

demo-kubernetes:
	@$(BIN)/python -m tests.kubernetes.cluster exec -- $(BIN)/python -m examples.kubernetes.demo

# What is slow runs many processes, other people's programs among them, which can starve each other on a few cores: what
# failed there is asked once more alone. What is broken fails twice. Nothing else gets a second try.
TESTS := $(BIN)/python -m pytest --ignore tests/conformance

test: .venv/.ready ## Lint, types, architecture and all tests
	@$(MAKE) --no-print-directory check
	@$(TESTS) -n $(JOBS) --dist worksteal -m "not slow"
	@$(TESTS) -n $(JOBS) --dist worksteal -m slow || $(TESTS) -m slow --last-failed
	@$(MAKE) --no-print-directory test-conformance
	@$(MAKE) --no-print-directory test-kubernetes

# In one process: all cases share one pair of servers for each setup.
test-conformance: .venv/.ready ## The worker beside a real Triton, the same bytes to both (the first time: 150 MB to fetch)
	@$(BIN)/python -m tests.conformance.triton
	@$(BIN)/python -m pytest tests/conformance

# Each group has a cluster of its own: what is one for a whole cluster (an APIService, rights) is not fought over, and
# what stops a program that the others need runs after them, alone. What failed is asked once more in the same cluster:
# tens of processes on a few cores can starve each other past every bound; what is broken fails twice.
WHOLE := $(wildcard $(addprefix tests/kubernetes/test_,chart*.py external_metrics*.py autoscaling*.py several*.py))
FLEET := $(wildcard tests/kubernetes/test_fleet*.py)
PARTS := $(filter-out $(WHOLE) $(FLEET),$(wildcard tests/kubernetes/test_*.py))
IN_CLUSTER := $(BIN)/python -m tests.kubernetes.cluster exec -- sh -ec
define TWICE
tried() { python -m pytest -o cache_dir=$$TMS_CLUSTER/tried "$$@" || python -m pytest -o cache_dir=$$TMS_CLUSTER/tried --last-failed "$$@"; };
endef

test-kubernetes: .venv/.ready ## The tests on a real Kubernetes control plane (the first time: seven minutes to build it)
	@$(MAKE) --no-print-directory test-kubernetes-parts
	@$(MAKE) --no-print-directory test-kubernetes-fleet
	@$(MAKE) --no-print-directory test-kubernetes-whole

test-kubernetes-parts:
	@$(IN_CLUSTER) '$(TWICE) tried -n $(JOBS) --dist worksteal -m "not disruptive" $(PARTS); tried -m disruptive $(PARTS)'

test-kubernetes-fleet:
	@$(IN_CLUSTER) '$(TWICE) tried -m "not disruptive" $(FLEET); tried -m disruptive $(FLEET)'

test-kubernetes-whole:
	@$(IN_CLUSTER) '$(TWICE) tried $(WHOLE)'

check: .venv/.ready ## Lint, types and import contracts only
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

unit: .venv/.ready ## The fast tests only
	@$(BIN)/python -m pytest -n $(JOBS) tests/unit tests/architecture

e2e: .venv/.ready ## The tests of the whole system only
	@$(BIN)/python -m pytest -n $(JOBS) tests/e2e

FUZZ_SECONDS ?= 60
fuzz: .venv/.ready ## Look for inputs that break the worker's parsers; FUZZ_SECONDS=60 for each
	@$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)

format: .venv/.ready ## Format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

protos: .venv/.ready ## Generate the stubs beside the .proto files
	@$(BIN)/python -m protos.generate

docs: .venv/.ready ## Generate the reference pages, the chart's schema and dashboard, and the locks of the images
	@$(BIN)/python -m deploy.generate
	@$(BIN)/python -m docs.generate

bench: .venv/.ready ## Measure; prints figures beside their references
	@$(BIN)/python -m benchmarks
	@$(MAKE) --no-print-directory bench-kubernetes

bench-kubernetes: .venv/.ready ## Measure on a real Kubernetes control plane only
	@$(BIN)/python -m tests.kubernetes.cluster exec -- $(BIN)/python -m benchmarks kubernetes

lock: $(UV) ## Resolve the dependencies anew into the lock files
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra local --group dev pyproject.toml -o requirements.lock
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra worker-gpu pyproject.toml -o requirements-gpu.lock
	@echo "Now run 'make docs': the locks of the images are cut from these."

clean: ## Remove what was set up and built
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
