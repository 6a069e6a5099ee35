# Each verb does all the set-up it needs, in .venv at the top of the checkout.
PYTHON ?= python3
BIN := .venv/bin
# Exact versions, the same for people and CI; `make LOCK= ...` takes the newest that pyproject.toml allows.
LOCK ?= requirements/ci.txt
PINNED := $(if $(LOCK),--constraint $(LOCK))

.PHONY: demo test check lint types layers docs package install lock licences audit sbom clean

.venv/.installed: pyproject.toml $(LOCK)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PINNED) --upgrade pip
	$(BIN)/pip install --quiet $(PINNED) torch torchvision
	$(BIN)/pip install --quiet $(PINNED) --editable '.[dev]'
	touch $@

install: .venv/.installed

demo: install  ## the whole job on the bundled demo data, offline, on a CPU: data, learning, pairs, export, report
	$(BIN)/anomalydiffusion demo --output demo-run

test: install  ## the test suite, on several processors at once: each file's tests in one process of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

docs: install  ## the documentation as web pages: build/docs/index.html
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html docs build/docs

package: install  ## wheel and sdist in dist/, each tried by the short demo in an environment that was empty
	rm -rf dist build/package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet $(PINNED) dist/*.whl
	cd build/package && bin/anomalydiffusion demo --quick --output of-wheel
	build/package/bin/pip uninstall --quiet --yes anomalydiffusion
	build/package/bin/pip install --quiet --no-deps dist/*.tar.gz
	cd build/package && bin/anomalydiffusion demo --quick --output of-sdist

lock: install  ## requirements/ci.txt from what is installed; newer versions: rm -r .venv && make LOCK= lock
	$(BIN)/python requirements/packages.py lock

licences: install  ## the table of packages in docs/licences.md; its last column is written by hand
	$(BIN)/python requirements/packages.py licences

build/audit/.installed: requirements/tools.txt
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --requirement $<
	touch $@

audit: build/audit/.installed  ## known holes in what is locked; asks a public service by the names and versions of its packages
	build/audit/bin/pip-audit --requirement $(or $(LOCK),requirements/ci.txt) --no-deps --disable-pip --strict --progress-spinner off

sbom: install build/audit/.installed  ## what is installed, as CycloneDX JSON: build/sbom.json
	build/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json $(BIN)/python

check: lint types layers docs test  ## what CI checks, beside the package

clean:
	rm -rf .venv build dist demo-run docs/reference/generated
