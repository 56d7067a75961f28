# make demo       render a film through a farm of two work pools, on this machine
# make test       all checks, and all tests but those marked long
# make test-all   all tests but chaos, and the documentation
# make up         start a farm (PORT=… for a port, API_URL=… for your own server); make down stops it
# make check      ruff and mypy; make unit  the tests without a server; make test-long  the other ones
# make test-containers  the images, and jobs in real containers, with Debian's podman
# make test-renderers  Blender, POV-Ray and Remotion, where they are installed
# make docs       build the documentation into site/; make dist  build the wheel into dist/
# make coverage   which lines the tests reach; make mutation [MODULES="…"]  which changes they notice
# make bench      all benchmarks; make bench NAME …  some; make screenshots  docs/pictures anew
# make chaos      kill and break parts of a farm in 200 jobs; CHAOS="--runs 20 --seed 7" for others
# make test-pythons  check, unit and demo with each Python that is found; PYTHONS="…" names some
# make lock       compile the lock files anew; make clean  remove what was made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Nothing is written to the user's home: no Prefect profile, no package caches.
export PREFECT_HOME := $(CURDIR)/$(VENV)/prefect
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Material for MkDocs tells of its successor, in each build.
export NO_MKDOCS_2_WARNING := 1
# A strict editable install links every file, so a new file needs a new install.
SOURCES := $(sort $(shell find blocks flows deployments -type f ! -name '*.pyc'))
LINKED := $(VENV)/.linked-$(shell echo $(SOURCES) | cksum | cut -d' ' -f1)
# Two processes at a time, which share a farm; three make its server answer too late.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What stands behind `bench` names benchmarks.
ifeq (bench,$(firstword $(MAKECMDGOALS)))
BENCHES := $(wordlist 2,$(words $(MAKECMDGOALS)),$(MAKECMDGOALS))
$(if $(BENCHES),$(eval $(BENCHES):;@:))
endif

.PHONY: demo test test-all test-long test-renderers test-containers test-pythons unit check up down docs dist coverage mutation \
	bench chaos screenshots lock clean

demo: $(LINKED)
	@$(BIN)/python -m prefect_renderfarm.deployments.demo.run

test: check
	@$(PYTEST)

test-all: test docs test-long

test-long: $(LINKED)
	@$(PYTEST) -m long

unit: check
	@$(PYTEST) tests/unit

test-renderers: $(LINKED)
	@$(PYTEST) -m long -rs tests/integration/test_renderers.py

test-containers: $(VENV)/.installed-containers
	@$(BIN)/python -m pytest -m containers -rsP tests/integration/test_containers.py tests/integration/test_pools.py

test-pythons:
	@$(PYTHON) tests/pythons.py $(PYTHONS)

check: $(LINKED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

up: $(LINKED)
	@$(BIN)/python -m prefect_renderfarm.deployments.cli up $(if $(PORT),--port $(PORT)) $(if $(API_URL),--api-url $(API_URL))

down: $(LINKED)
	@$(BIN)/python -m prefect_renderfarm.deployments.cli down

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet

dist: $(LINKED)
	$(BIN)/python -m build --no-isolation --outdir dist

coverage: $(VENV)/.installed-quality
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

mutation: $(VENV)/.installed-quality
	@$(BIN)/python tests/mutation.py $(MODULES)

bench: $(LINKED)
	@$(BIN)/python tests/benchmarks/run.py $(BENCHES)

chaos: $(LINKED)
	@$(BIN)/python tests/chaos/run.py $(CHAOS)

screenshots: $(LINKED)
	$(BIN)/python -m pip install --quiet playwright
	@$(BIN)/python tests/browser/run_form.py

COMPILE := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links
lock: $(LINKED)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile $(COMPILE) --extra dev --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile $(COMPILE) --extra google --extra lambda -c requirements.lock --output-file requirements-runtime.lock pyproject.toml
	$(BIN)/uv pip compile $(COMPILE) --extra docker --extra kubernetes -c requirements.lock --output-file requirements-containers.lock pyproject.toml
	$(BIN)/uv pip compile $(COMPILE) --group docs -c requirements.lock --output-file requirements-docs.lock
	$(BIN)/uv pip compile $(COMPILE) --group quality -c requirements.lock --output-file requirements-quality.lock

clean:
	rm -rf $(VENV) build dist out site .mutation .coverage*

# Built packages only: none asks for a compiler.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --only-binary :all: --require-hashes

$(VENV)/.installed: requirements.lock
	@sh deployments/check_machine.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.lock
	@# On all cores, where pip compiles on one; some packages have files for other versions of Python.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >$(VENV)/compiled.log 2>&1 || true
	@touch $@

$(VENV)/.installed-%: requirements-%.lock $(LINKED)
	$(INSTALL) -r $<
	@touch $@

$(LINKED): $(VENV)/.installed pyproject.toml
	@rm -f $(VENV)/.linked-*
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=strict -e .
	@# Saves 0.7 s in each process of a farm where Python may not write what it compiles.
	@$(BIN)/python -m compileall -q build/__editable__*
	@touch $@
