# Everything a newcomer needs: `make demo` and `make test`. Each first installs what it needs, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What tests need beside vsrn itself. Ray, which is large, is left out and its tests are skipped: EXTRAS=dev,tensorboard,ray
EXTRAS ?= dev,tensorboard
comma := ,
# A stamp says what is installed: one for the demo, and one for each choice of extras.
DEMO_READY := $(VENV)/.ready-demo
TEST_READY := $(VENV)/.ready-$(subst $(comma),-,$(EXTRAS))

.PHONY: setup demo test test-slow check lint types docs bench clean

# $(call install,WHAT): WHAT, editable, into a virtual environment that is made where there is none.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing vsrn and what it needs into $(VENV) (a few minutes the first time)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable "$(1)"
	@touch $@
endef

$(DEMO_READY): pyproject.toml
	$(call install,.)

$(TEST_READY): pyproject.toml
	$(call install,.[$(EXTRAS)])

setup: $(TEST_READY)

demo: $(DEMO_READY)
	$(BIN)/vsrn demo

# One thread a worker: torch's thread pools fight each other otherwise.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Half a minute or more each: every measurement of benchmarks/gpu with small sizes, a killed Ray driver, a trained GRU.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The scripts are no package: each folder's import one another by their bare names.
types: setup
	$(BIN)/mypy
	MYPYPATH=benchmarks/gpu:benchmarks:tests/helpers $(BIN)/mypy --allow-untyped-calls benchmarks/*.py benchmarks/gpu/*.py
	MYPYPATH=experiments:tests/helpers $(BIN)/mypy --allow-untyped-calls experiments/*.py

check: lint types test

docs: setup
	$(BIN)/mkdocs build --strict

bench: setup
	for script in start_up photos loading extraction encoding caption_gru training_step ranking evaluation memory search serve; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf $(VENV) demo build dist
