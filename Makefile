# The only truth about how things are run; .ci/run calls the same targets.
# Needs Python 3.11 or newer, make and a package index; everything else goes into virtual environments of its own.
PYTHON ?= python3
VENV := .venv
BACKENDS_VENV := .venv-backends
SERVERS_VENV := .venv-servers
AUDIT_VENV := .venv-audit
RUN := TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python

.PHONY: help demo test test-slow test-backends test-servers lint types audit format bench results clean
.PHONY: reproduce-mnist reproduce-cnn reproduce-wrn reproduce-lstm

help:  ## Say what there is
	@grep -E '^[a-z -]+:.*##' Makefile | sed -E 's/:.*## /\t/; s/reproduce-mnist .*\t/reproduce-NAME\t/' | expand -t 16

demo: $(VENV)/ready  ## Mark, release and prove a model on 5,000 real digits, anew in runs/demo (one minute)
	rm -rf runs/demo
	$(RUN) -m scripts.train_mnist_mlp --dataset=mnist5k --output_dir=runs/demo

# COVERAGE=1 asks for line coverage too, as continuous integration does; it takes a quarter more time.
test: $(VENV)/ready  ## The fast tests and doctests
	$(RUN) -m pytest -m "not slow" -n 2 --dist=loadscope --no-loadscope-reorder --durations=25 $(if $(COVERAGE),--cov --cov-report=term)

test-slow: $(VENV)/ready  ## Real training on the full data
	$(RUN) -m pytest -m slow tests

test-backends: $(BACKENDS_VENV)/ready  ## The core on JAX and on PyTorch, without TensorFlow
	KERAS_BACKEND=jax $(BACKENDS_VENV)/bin/python -m pytest -m any_backend tests
	KERAS_BACKEND=torch $(BACKENDS_VENV)/bin/python -m pytest -m any_backend tests

test-servers: $(VENV)/ready $(SERVERS_VENV)/ready  ## Questions to servers on this machine, MLServer among them
	$(RUN) -m pytest tests/test_servers.py

lint: $(VENV)/ready  ## Style and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/ready  ## Types of the package
	$(VENV)/bin/mypy

audit: $(AUDIT_VENV)/ready  ## Known holes of the dependencies; needs PyPI itself
	for list in requirements*.txt; do $(AUDIT_VENV)/bin/pip-audit --strict -r $$list || exit 1; done

format: $(VENV)/ready  ## Put the code into its format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/ready  ## What marking costs in time, against plain training (hours, on an idle machine)
	$(RUN) -m benchmarks.overhead --study=networks
	$(RUN) -m benchmarks.overhead --study=costs
	$(RUN) -m benchmarks.overhead --study=triggers

reproduce-mnist reproduce-cnn reproduce-wrn reproduce-lstm: reproduce-%: $(VENV)/ready  ## Train a row of the README again, all seeds, into runs/reproduced; goes on where it stopped
	$(RUN) -m benchmarks.$* --runs_dir=runs/reproduced --results_dir=runs/reproduced

results: $(VENV)/ready  ## Write the tables and pictures of README and docs/results.md from the recorded results
	$(RUN) -m benchmarks.tables

clean:  ## Remove environments and caches; runs/ stays, with its keys and measurements
	rm -rf $(VENV) $(BACKENDS_VENV) $(SERVERS_VENV) $(AUDIT_VENV) .mypy_cache .pytest_cache .ruff_cache .coverage .hypothesis

%/ready: requirements.txt requirements-backends.txt requirements-servers.txt requirements-audit.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements$(patsubst .venv%,%,$(@D)).txt
	touch $@
