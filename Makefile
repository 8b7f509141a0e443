# Everything here keeps to the virtual environment .venv, which `make venv` makes.
#
#   PYTHON       the Python (3.11 or newer) that .venv is made from
#   PYTEST_ARGS  more arguments for pytest:   make test PYTEST_ARGS='-k packets -x'
#   TEST_JOBS    processes that test, each with a broker of its own; 0 for none but pytest's own
#   BROKER_ARGS  more arguments for broker:   make broker BROKER_ARGS='--port 19092'
#   CHAOS_ARGS   more arguments for chaos:    make chaos CHAOS_ARGS='--rounds 1 --seed 7 --verbose'
#   SOAK_ARGS    more arguments for soak:     make soak SOAK_ARGS='--minutes 5'
#   BENCH_ARGS   more arguments for bench:    make bench BENCH_ARGS='--sizes 1024 --seeds 1'

PYTHON ?= python3
PYTEST_ARGS ?=
TEST_JOBS ?= 2
BROKER_ARGS ?=
CHAOS_ARGS ?=
SOAK_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Touched last: an installation that was interrupted is done again.
STAMP := $(VENV)/.installed
# The peers that `make bench` measures live apart: they are no part of skydelta.
PEERS := .venv-bench

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format broker chaos soak bench figures clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with skydelta and everything it needs

$(STAMP): pyproject.toml
	@./deploy/make-venv "$(PYTHON)" $(VENV)
	@touch $@

demo: $(STAMP) ## simulate a small survey and watch its alerts come out of the stream
	@$(BIN)/skydelta demo

test: $(STAMP) ## run every test, against a real Kafka where there is a way to one
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

broker: $(STAMP) ## run a local Apache Kafka in the foreground and print its address
	@exec $(BIN)/python -m tests.kafka.local_broker $(BROKER_ARGS)

chaos: $(STAMP) ## kill services, workers and the broker for twenty rounds, and count what comes out
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

soak: $(STAMP) ## run the service on small exposures for half an hour, and see whether it grows
	@$(BIN)/python -m tests.soak $(SOAK_ARGS)

bench: $(STAMP) $(PEERS)/.installed ## measure subtraction, projection (beside peers) and templates; hours with all peers
	@$(BIN)/python -m tests.benchmarks.bench_subtraction $(BENCH_ARGS)
	@$(BIN)/python -m tests.benchmarks.robustness
	@$(BIN)/python -m tests.benchmarks.bench_resample
	@$(BIN)/python -m tests.benchmarks.bench_templates
	@$(BIN)/python -m tests.benchmarks.bench_service

# Without them, where there is no way to the package index, the table says so and goes on.
$(PEERS)/.installed: pyproject.toml | $(STAMP)
	@echo "make bench: installing the peers into $(PEERS)"
	@$(BIN)/python -m venv $(PEERS) && \
		$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1' && \
		$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --group bench && \
		touch $@ || echo "make bench: the peers could not be installed, and are not measured"

figures: $(STAMP) ## draw the pictures of the README
	@$(BIN)/python docs/figures.py --demo

clean: ## remove what runs leave behind
	rm -rf demo-output build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .numba_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(PEERS)/*' -prune -exec rm -rf {} +

distclean: clean ## ... and the virtual environments and Kafka's jars
	rm -rf $(VENV) $(PEERS) *.egg-info deploy/kafka/libs
