# The same words here and in CI. `make demo` and `make test` install what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python -P

.PHONY: demo test check lint types unit e2e faults links install clean help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .stamps/packages .stamps/venv links  ## Debian packages, virtual environment, link tree

.stamps/packages: deploy/debian-packages.txt
	@mkdir -p .stamps
	deploy/install-packages.sh $<
	@touch $@

.stamps/venv: pyproject.toml
	@mkdir -p .stamps
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e '.[node,test,lint]'
	@touch $@

links:
	@mkdir -p .links/fastpull
	@for p in cache config fuse_client image proxy; do ln -sfn ../../$$p .links/fastpull/$$p; done

lint: install  ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install  ## mypy --strict
	$(VENV)/bin/mypy -p fastpull

unit: install  ## tests that need no privileges
	$(PY) -m pytest tests/unit tests/conformance

e2e: install  ## tests with real containerd, FUSE and EROFS (root)
	$(PY) -m pytest tests/e2e

faults: install  ## the fault matrix: run its tests, write what they saw into README.md (root)
	@$(PY) -m pytest tests --fault-table .stamps/faults.json; outcome=$$?; \
	$(PY) tests/tools/fault_table.py .stamps/faults.json --write README.md; exit $$outcome

check: lint types unit  ## everything unprivileged

test: lint types  ## everything
	$(PY) -m pytest tests

demo: install  ## build, push and start a real AI image twice: overlayfs and lazily
	$(PY) deploy/demo/run.py

clean:  ## remove what install made
	rm -rf .venv .links .stamps build dist *.egg-info
