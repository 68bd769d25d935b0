# pvc: what there is to build, to check and to try. `make` alone lists it.

VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/pytest
# Testbeds of several checkouts (and of the demo and the tests) can run side by side.
BENCH  ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check deps venv spank agent bpf bench fmt man golden clean need-venv

help:  ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: deps venv spank agent bpf  ## Install what is missing, boot 4 VMs on a 3-node Slurm testbed, show them talk, clean up.
	tools/demo

test: deps venv spank agent bpf  ## Everything: check, then the suites with root, VMs and Slurm. CI runs this.
	tools/test

check: need-venv  ## The fast part: no root, no network, under a minute. (C tests included.)
	$(PYTEST) -q -n 2 tests/unit

deps:  ## Install the Debian packages of conf/debian-packages.txt that are missing (as root).
	@tools/deps

venv:  ## Make .venv with pvc (editable) and the development tools.
	@tools/venv

spank:  ## Build the SPANK plug-in.
	@$(MAKE) --no-print-directory -C spank

agent:  ## Build the agent that runs in guests.
	@$(MAKE) --no-print-directory -C agent

bpf:  ## Build the programs for the ports of networks.
	@$(MAKE) --no-print-directory -C bpf

bench: need-venv  ## Print measurements, one JSON object a line; BENCH=NAME runs one (setup, throughput, plan …).
	@$(BIN)/python -m tests.bench $(BENCH)

fmt: need-venv  ## Format the code and mend what ruff can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: need-venv  ## Write the generated parts of the manual, and the pages as man/build/*.
	$(BIN)/pvc mandoc man/gen
	mkdir -p man/build
	for page in man/*.rst; do $(BIN)/rst2man "$$page" "man/build/$$(basename "$$page" .rst)"; done

golden: need-venv  ## Write the expected plans and command lines of the tests again; the diff is for review.
	PVC_GOLDEN=write $(PYTEST) -q tests/unit/plan

clean:  ## Remove what was built, the venv included.
	$(MAKE) --no-print-directory -C spank clean
	$(MAKE) --no-print-directory -C agent clean
	$(MAKE) --no-print-directory -C bpf clean
	rm -rf $(VENV) .venv.lock build dist *.egg-info man/build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-venv:
	@test -x $(PYTEST) || { echo "there is no .venv here: make venv" >&2; exit 1; }
