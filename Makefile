# Everything from a fresh clone: each target sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup dev demo test lab lint types layers widgets protos bench-tf-env clean

help:        ## what can be made
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/'

setup: $(VENV)/.demo   ## the virtual environment, with nbflow in it
dev: $(VENV)/.dev      ## the same, with what tests and checks need

$(VENV)/.demo: pyproject.toml
	@PYTHON="$(PYTHON)" scripts/setup lab
	@touch $@

$(VENV)/.dev: pyproject.toml
	@PYTHON="$(PYTHON)" scripts/setup dev
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo    ## runs examples/mnist.ipynb on two local workers and a ps
	@$(BIN)/python scripts/demo.py

test: $(VENV)/.dev     ## the tests
	@scripts/test

lab: $(VENV)/.demo     ## opens JupyterLab on the examples
	@scripts/lab

lint: $(VENV)/.dev     ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev    ## mypy, strict
	@$(BIN)/mypy

layers: $(VENV)/.dev   ## the order of the rooms
	@$(BIN)/lint-imports

widgets:               ## rebuilds the browser code (needs Node; the built files are committed)
	@scripts/build-widgets

protos: $(VENV)/.dev   ## regenerates the protobuf modules
	@scripts/generate-protos

bench-tf-env:          ## .venv-tf with TensorFlow, the peer of benchmarks/distributed.py
	@$(PYTHON) -m venv .venv-tf && .venv-tf/bin/pip install -q 'tensorflow-cpu==2.21.*'

clean:                 ## removes the environment and what the targets made
	rm -rf $(VENV) demo-output test-output build dist
