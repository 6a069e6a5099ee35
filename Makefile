# Each verb does all the set-up it needs, in .venv at the top of the checkout.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint types layers docs package install clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch torchvision
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

install: .venv/.installed

demo: install  ## the whole job on the bundled demo data, offline, on a CPU: data, learning, pairs, export, report
	$(BIN)/anomalydiffusion demo --output demo-run

test: install  ## the test suite
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

docs: install  ## the documentation as web pages: build/docs/index.html
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html docs build/docs

package: install  ## wheel and sdist in dist/, the wheel tried by the short demo in an empty environment
	rm -rf dist build/package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet dist/*.whl
	cd build/package && bin/anomalydiffusion demo --quick

check: lint types layers docs test  ## what CI checks, beside the package

clean:
	rm -rf .venv build dist demo-run docs/reference/generated
