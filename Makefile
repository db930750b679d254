# Everything runs in .venv, which is created when a target first needs it and updated when setup.cfg changes.

PYTHON ?= python3
# '=', not '?=': environment variables named DATA or TASK must not apply.
TASK = task2
DATA = shapes
ARGS =
PORT = 5000

# The images: docs/image.md.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' cnn_jobs/__init__.py)
VARIANT = cuda
IMAGE = cnn-jobs:$(VERSION)$(filter-out -cuda,-$(VARIANT))
MLFLOW_IMAGE = cnn-jobs-mlflow:3.17.2-1
BASE = docker.io/library/python:3.11-slim
DATA_FILE =
REGISTRY =
BUILDER =
BUILD_FLAGS =
TORCH_INDEX = https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
LOCAL := .local
SERVER := $(BIN)/python -m cnn_jobs.local_server
PIP := $(BIN)/python -m pip --disable-pip-version-check
METADATA := setup.cfg pyproject.toml

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup local-run local-stop local-status test test-all gpu-test image-test e2e lint format bench manifests image mlflow-image
.PHONY: image-push lock lock-cpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' '$(firstword $(MAKEFILE_LIST))'
	@echo
	@echo "  make local-run TASK=task3e DATA=cifar10 ARGS='--epochs 1 --seed 3' trains something else;"
	@echo "  it always records on the local server and ignores MLFLOW_TRACKING_URI (PORT=$(PORT) or the next free one)."
	@echo "  make PYTHON=/path/to/python3.12 setup uses another Python (3.11 or later)."
	@echo
	@echo "  Images: VARIANT=cuda or cpu, IMAGE=$(IMAGE), MLFLOW_IMAGE=$(MLFLOW_IMAGE), BASE=$(BASE),"
	@echo "  DATA_FILE=prepared.npz is included, BUILDER=docker, podman or buildah (the first available),"
	@echo "  BUILD_FLAGS= is passed to it, REGISTRY=registry.example/team is the destination of image-push; docs/image.md"

setup: $(VENV)/.installed-run ## create .venv with the cnn-jobs command in it

local-run: $(VENV)/.installed-run ## train TASK=task2 DATA=shapes ARGS= with an MLflow server on this machine
	@[ -z "$$MLFLOW_TRACKING_URI" ] || echo "MLFLOW_TRACKING_URI=$$MLFLOW_TRACKING_URI is ignored: local-run records on the local server"
	@$(SERVER) start --dir $(LOCAL) --port $(PORT)
	@url=$$($(SERVER) url --dir $(LOCAL)) && \
	MLFLOW_TRACKING_URI="$$url" CNN_JOBS_STATE_DIR=$(LOCAL)/state \
	NO_PROXY="127.0.0.1$${NO_PROXY:+,$$NO_PROXY}" no_proxy="127.0.0.1$${no_proxy:+,$$no_proxy}" \
	$(BIN)/cnn-jobs train '$(TASK)' --data '$(DATA)' $(ARGS)

local-stop: ## stop the local MLflow server (its data stays in .local)
	@if [ -f $(LOCAL)/server.json ]; then $(SERVER) stop --dir $(LOCAL); else echo "no local MLflow server is running"; fi

local-status: ## show whether the local MLflow server runs, and where
	@if [ -f $(LOCAL)/server.json ]; then $(SERVER) status --dir $(LOCAL); else echo "no local MLflow server is running"; fi

# Two at a time: half of the time is spent on imports and waiting.
test: $(VENV)/.installed-test ## the fast tests (about four minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 -m "not slow and not integration and not cluster and not gpu and not image"

# Two at a time: most of the slow ones wait for servers, timeouts and heartbeats.
test-all: $(VENV)/.installed-test ## the fast, slow and integration tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=20 -m "not cluster and not gpu and not image"

gpu-test: $(VENV)/.installed-test ## the tests that need a CUDA device (docs/cuda.md)
	$(BIN)/python -m pytest --durations=10 -m gpu

image-test: $(VENV)/.installed-test ## build and run both images (root, buildah, podman, debootstrap, 25 GB)
	$(BIN)/python -m pytest --durations=10 -m image

# In order, one at a time, with their waits logged as they happen.
e2e: $(VENV)/.installed-test ## the tests on the cluster of KUBECONFIG, E2E_IMAGE=... (docs/e2e.md)
	@[ -n "$$KUBECONFIG" ] && [ -n "$$E2E_IMAGE" ] || \
		{ echo "make e2e needs KUBECONFIG and E2E_IMAGE: see docs/e2e.md" >&2; exit 1; }
	$(BIN)/python -m pytest tests/e2e -m cluster --capture=no --durations=0 -p no:cacheprovider $(ARGS)

lint: $(VENV)/.installed-test ## ruff and mypy, without changes
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.installed-test ## format the code, and apply ruff's fixes
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.installed-bench ## run the benchmarks (ARGS= is passed to them)
	$(BIN)/python -m benchmarks.run $(ARGS)

manifests: $(VENV)/.installed-run ## write the Kubernetes Jobs in k8s/ from the registry of tasks
	$(BIN)/cnn-jobs manifests render

image: ## build the image of the jobs with docker, podman or buildah
	@case '$(VARIANT)' in cuda|cpu) ;; *) echo "VARIANT is '$(VARIANT)', but must be cuda or cpu" >&2; exit 1;; esac
	@[ -f 'k8s/image/torch-$(VARIANT).txt' ] || \
		{ echo "k8s/image/torch-$(VARIANT).txt does not exist; 'make lock-$(VARIANT)' writes it from $(TORCH_INDEX)" >&2; exit 1; }
	@case '$(DATA_FILE)' in */*) echo "DATA_FILE is '$(DATA_FILE)', but must be a file beside the Makefile" >&2; exit 1;; esac
	@[ -z '$(DATA_FILE)' ] || [ -f '$(DATA_FILE)' ] || \
		{ echo "DATA_FILE: $(DATA_FILE) does not exist; 'cnn-jobs data prepare SRC $(DATA_FILE)' makes it" >&2; exit 1; }
	@$(find-builder); commit=$$(git rev-parse --verify --quiet HEAD) || commit=; dirty=; \
	if [ -n "$$commit" ]; then if [ -n "$$(git status --porcelain)" ]; then dirty=1; else dirty=0; fi; fi; \
	set -x; \
	"$$builder" build $$layers --file Dockerfile --tag '$(IMAGE)' --build-arg BASE='$(BASE)' --build-arg VARIANT='$(VARIANT)' \
		--build-arg VERSION='$(VERSION)' --build-arg GIT_COMMIT=$$commit --build-arg GIT_DIRTY=$$dirty \
		--build-arg TORCH_INDEX='$(TORCH_INDEX)' --build-arg DATA_FILE='$(DATA_FILE)' \
		$(BUILD_FLAGS) .

mlflow-image: ## build the image of the MLflow server
	@$(find-builder); set -x; \
	"$$builder" build $$layers --tag '$(MLFLOW_IMAGE)' --build-arg BASE='$(BASE)' $(BUILD_FLAGS) mlflow

image-push: ## push both images to REGISTRY=
	@[ -n '$(REGISTRY)' ] || { echo "REGISTRY is not set: make image-push REGISTRY=registry.example/team" >&2; exit 1; }
	@$(find-builder); set -x; \
	for image in '$(IMAGE)' '$(MLFLOW_IMAGE)'; do \
		"$$builder" tag "$$image" "$(REGISTRY)/$$image"; "$$builder" push "$(REGISTRY)/$$image"; \
	done

# Generated once: PostgreSQL and the store keep the passwords of their first start.
mlflow/.env:
	@umask 077 && '$(PYTHON)' -c 'import secrets; t = secrets.token_hex; print(f"POSTGRES_PASSWORD={t(24)}\nAWS_ACCESS_KEY_ID={t(10)}\nAWS_SECRET_ACCESS_KEY={t(20)}")' > $@
	@echo "$@: passwords generated for mlflow/compose.yaml; git ignores it"

lock: $(VENV)/.installed-lock ## update the hashed locks of both images to the newest versions that setup.cfg allows
	$(BIN)/python k8s/image/lock.py

lock-cpu: $(VENV)/.installed-lock ## write k8s/image/torch-cpu.txt from PyTorch's own index (TORCH_INDEX=)
	$(BIN)/python k8s/image/lock.py --cpu '$(TORCH_INDEX)'

clean: ## remove caches and build output (.venv and .local stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# A stamp marks a complete install; it is written last, so that a failed install is retried.

$(VENV)/.installed-run: $(METADATA)
	@$(create-venv)
	$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: $(METADATA)
	@$(create-venv)
	$(PIP) install --editable '.[test,lint]'
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-bench: $(METADATA)
	@$(create-venv)
	$(PIP) install --editable '.[bench]'
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-lock: $(METADATA)
	@$(create-venv)
	$(PIP) install --editable '.[lock]'
	@touch $(VENV)/.installed-run $@

# 'docker version' fails without its daemon.
define find-builder
set -e; builder='$(BUILDER)'; layers=; \
if [ -z "$$builder" ]; then \
	for each in docker podman buildah; do \
		if "$$each" version >/dev/null 2>&1; then builder=$$each; break; fi; \
	done; \
fi; \
[ -n "$$builder" ] || \
	{ echo "found no docker with a running daemon, no podman, no buildah: install one, or set BUILDER=/path/to/one" >&2; exit 1; }; \
case "$$builder" in *buildah) layers=--layers;; esac
endef

# Keeps a .venv with a working pip; replaces one that is incomplete or whose Python was removed.
define create-venv
set -e; \
if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	command -v '$(PYTHON)' >/dev/null || { echo "$(PYTHON): not found; install Python 3.11 or later, or set PYTHON=/path/to/python" >&2; exit 1; }; \
	'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$('$(PYTHON)' --version 2>&1), but must be 3.11 or later; set PYTHON=/path/to/python" >&2; exit 1; }; \
	'$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	echo "creating $(VENV) with $$('$(PYTHON)' --version)"; \
	'$(PYTHON)' -m venv --clear $(VENV); \
fi
endef
