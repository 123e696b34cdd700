# Every target needs .venv and makes it if it is missing or older than what it was made from.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CORE   := src/headway/scheduler/*,src/headway/kvcache/*,src/headway/managers/*,src/headway/adapters/*
# More arguments for the command that a target runs: make serve ARGS="--port 9000"
ARGS   ?=
# Other engines whose schedulers `make bench` measures beside ours; vLLM's source is fetched the first time.
PEERS  ?= vllm

.PHONY: help setup demo serve test docs fuzz adapters clients cluster router-check mutants golden lint format bench soak gpu-check model-check clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1	/' | expand -t 21

setup: $(READY)  ## Make .venv with everything at the pinned versions

# torch first and alone: what depends on it then takes it as it is, whichever build (CPU, CUDA) pip is set up to find.
$(READY): pyproject.toml lab/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,bench,cpu,nixl]' -e lab
	@touch $@

demo: $(READY)  ## Serve the embedded model, ask it a few dozen questions at once, check the answers
	$(BIN)/python examples/demo.py $(ARGS)

serve: $(READY)  ## Serve the embedded model (OpenAI's API) until Ctrl-C
	$(BIN)/headway serve $(ARGS)

test: $(READY)  ## Run the tests; the core must be covered to 97%, branches included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --include='$(CORE)' --fail-under=97

docs: $(READY)  ## Build the documentation as a site in build/site; links and references are checked
	$(BIN)/python tools/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

fuzz: $(READY)  ## Fuzz bodies and command lines, then a running server by its own documentation (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -q
	$(BIN)/python tools/fuzz.py $(ARGS)

adapters: $(READY)  ## vLLM's and FastDeploy's own engines with our scheduler beside theirs (makes their environments once)
	OMP_NUM_THREADS=1 $(BIN)/python tools/adapters.py $(ARGS)

clients: $(READY)  ## Official clients by their own calls against our server (makes their environments once); docs/clients.md
	OMP_NUM_THREADS=1 $(BIN)/python tools/clients.py $(ARGS)

cluster: $(READY)  ## A Ray cluster on this machine: answers, deaths, scaling, routing, costs (makes its environment once)
	OMP_NUM_THREADS=1 $(BIN)/python tools/cluster.py $(ARGS)

mutants: $(READY)  ## Bring back each flaw of the original, one at a time: the tests that guard against it must fail
	$(BIN)/python tools/mutants.py $(ARGS)

golden: $(READY)  ## Simulate 200 seeds under v0, v1 and v2: the scheduler must decide as it did when they were stored
	$(BIN)/python tools/golden.py $(ARGS)

lint: $(READY)  ## Check style, format, types, the arrows of the map, and the words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python tools/words.py

format: $(READY)  ## Put style and format right where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Run every benchmark, schedulers beside vLLM's (PEERS= : alone); writes docs/benchmarks/results.md
	$(BIN)/headway bench all $(addprefix --peer ,$(PEERS)) $(ARGS)

soak: $(READY)  ## 200,000 short requests on a simulated device and 20,000 on the real one: memory must not grow
	$(BIN)/headway bench soak --executor simulated $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/headway bench soak --executor transformers $(ARGS)

router-check: $(READY)  ## vllm-router and a sidecar before prefill and decode engines, token by token (makes .peers/router)
	$(BIN)/python tools/router_check.py $(ARGS)

gpu-check:  ## On a machine with a CUDA device: exact tokens, preemption, share of the host, decode speed (PYTHON= its Python)
	PYTHONPATH=src $(PYTHON) tools/gpu_check.py $(ARGS)

model-check:  ## Check the models of mailbox, query and P/D exhaustively (needs Spin: apt-get install spin)
	@verification/check

clean:  ## Remove what builds, tests and linters leave (.venv stays)
	rm -rf build dist htmlcov .coverage .coverage.* coverage.xml .hypothesis .schemathesis .mypy_cache .pytest_cache .ruff_cache
	find src lab tests tools examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
