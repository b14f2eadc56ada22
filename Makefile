# Each target is enough on its own, on a fresh clone: the first one called sets .venv up (see .ci/setup), and a changed
# pyproject.toml brings it up to date. ARGS is handed on: make test ARGS="-k routing", make reproduce ARGS="--all".

VENV := .venv
ARGS ?=
MINUTES ?= 9
OUT ?= gpu
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help reproduce test lab gpu check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

reproduce: $(VENV)/.ready ## train and render Table 1, its complexity and Figure 2 on two CPU cores: 7 minutes
	@$(VENV)/bin/encapnet reproduce $(ARGS)

test: $(VENV)/.ready ## run every notebook and every test: 15 minutes at most
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lab: $(VENV)/.ready ## open the guided tour in JupyterLab
	@$(VENV)/bin/jupyter lab --allow-root --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

gpu: ## measure what a borrowed GPU is worth, MINUTES=9 OUT=gpu DATA=folder; needs PyTorch there, fetches nothing
	@MINUTES="$(MINUTES)" OUT="$(OUT)" DATA="$(DATA)" sh .ci/gpu $(ARGS)

check: $(VENV)/.ready ## bring package, notebooks and README in step, and check style and types: under a minute
	@sh .ci/check

$(VENV)/.ready: pyproject.toml .ci/setup $(wildcard requirements.lock)
	@sh .ci/setup
