# Everything a newcomer needs: `make demo` and `make test`. Both set the machine up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed beside vsrn itself. Without Ray, which is large, its tests are skipped: EXTRAS=dev,tensorboard,ray
EXTRAS ?= dev,tensorboard
comma := ,
# One stamp for each choice of extras, so that another choice installs what it lacks.
READY := $(VENV)/.ready-$(subst $(comma),-,$(EXTRAS))

.PHONY: setup demo test check lint types docs bench clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing vsrn and its dependencies into $(VENV) (a few minutes the first time)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@touch $(READY)

demo: setup
	$(BIN)/vsrn demo

# One thread a worker: torch's thread pools fight each other otherwise.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

docs: setup
	$(BIN)/python docs/make_cli.py
	$(BIN)/mkdocs build --strict

bench: setup
	for script in start_up loading extraction encoding caption_gru training_step ranking evaluation memory search serve; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf $(VENV) demo build dist
