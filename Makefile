# Every target makes the environment first: a fresh clone needs nothing but `make demo` or `make test`.
# PYTHON=/path/to/python3.12 chooses the interpreter that .venv is made with.

export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo imagenette test test-slow test-cluster lint environment lock clean

demo: environment
	./demo.sh

# A result on real photographs: make imagenette IMAGES=imagenette2-320.tgz, or a folder.
# RECIPE=imagenette-2012 is another training, OPTIONS="--epochs 10" changes it.
RECIPE ?= imagenette
imagenette: environment
	./demo.sh $(RECIPE) "$(IMAGES)" $(OPTIONS)

# The tests of a file run in one process, one after the other: they share a Ray, or shards.
test: lint
	python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow and not gpu"

# Slow tests kill and time things: they run alone.
test-slow: test
	python -m pytest -m "slow and not gpu"

# Several hosts and Slurm, on this machine, as root. What is missing is installed from Debian, or its tests are skipped
# with a line that names the package. They are slow tests, too.
CLUSTER_PACKAGES = iproute2 munge slurm-wlm
test-cluster: environment
	@dpkg --status $(CLUSTER_PACKAGES) > /dev/null 2>&1 \
	    || apt-get install --yes --no-install-recommends $(CLUSTER_PACKAGES) || true
	python -m pytest -m cluster --durations=0

lint: environment
	ruff check .
	ruff format --check .
	mypy

environment:
	@./bootstrap.sh

# Exact versions with hashes, without addresses: whoever installs chooses the mirror.
lock:
	@./bootstrap.sh uv
	.uv/bin/uv pip compile pyproject.toml --all-extras --quiet --upgrade --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate --output-file requirements.lock

# What the tools keep, and the environment. Shards, runs and reports are yours: they stay.
clean:
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
