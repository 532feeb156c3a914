# Everything starts from Python 3.11 or newer and make; the rest is set up below .venv from the lock file.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
UV := .uv/bin/uv

.DEFAULT_GOAL := help
.PHONY: help setup demo test check unit tiers format protos lock bench docs clean

help: ## Show what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV):
	@echo "Setting up uv ..."
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1"

.venv/.ready: $(UV) requirements.lock pyproject.toml
	@echo "Setting up .venv from requirements.lock ..."
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	@$(UV) pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

setup: .venv/.ready ## Set up the virtual environment
