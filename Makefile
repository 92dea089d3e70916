# Two commands on a fresh machine with Python 3.10+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= omnimix-out

.PHONY: demo test docs lint clean

$(VENV)/compare.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "omnimix needs Python 3.10 or newer; try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[compare]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/compare.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev,docs]" --editable examples/plugin
	touch $@

# Mixing helps (noisy labels), and mixing hurts (a smooth regression): about three minutes on two cores.
demo: $(VENV)/compare.stamp
	$(BIN)/omnimix compare --data digits --label-noise 0.4 --methods erm,mixup:alpha=1,mixup:alpha=32,manifold-mixup --seeds 5 --out $(OUT)/demo-digits
	$(BIN)/omnimix compare --data airfoil --protocol c-mixup --methods erm,mixup,manifold-mixup,c-mixup --seeds 5 --out $(OUT)/demo-airfoil

test: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OUT) build
