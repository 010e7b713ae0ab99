# `make demo` and `make test` do all the set-up themselves; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint types contracts unit test-long test-faults test-deployment audit-dependencies lock format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(INSTALLED) ## install, train three simulated hospitals, print where the report is
	$(BIN)/fedward simulate experiment=demo

test: lint types contracts unit ## everything that CI runs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyright --warnings

contracts: $(INSTALLED)
	$(BIN)/lint-imports --no-cache

unit: $(INSTALLED) ## all tests but the long ones; for two cores: those that start processes wait a lot
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder \
		--durations=20 -m "not long"

test-long: $(INSTALLED) ## minutes of crash drills and statistics
	$(BIN)/pytest -m long

test-faults: $(INSTALLED) ## every fault drill, those with processes of a run included
	$(BIN)/pytest tests/end_to_end/test_faults.py

format: $(INSTALLED) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-deployment: $(INSTALLED) ## hospitals, nginx and certificates as real processes, and attacks on them
	$(BIN)/pytest -m long tests/end_to_end/deployment

# --strict: a package that the service of advisories does not know, or no service, is a failure
audit-dependencies: $(INSTALLED) ## known holes in what is installed (needs the network)
	@$(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict || \
		{ echo "Not shown to be free of known holes: see above." >&2; exit 1; }

lock: $(INSTALLED) ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--no-emit-index-url --no-header --no-annotate --upgrade --quiet -o requirements.lock

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Fedward needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)'
	@echo "Installing into $(VENV) (about 5 GB, once) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.7"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@
