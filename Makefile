# Every command of the course. Each one sets itself up first; `make` alone lists them.
SHELL := /bin/bash
python := .venv/bin/python

# The strict notebook check belongs to the same pytest run, so that one summary line tells all.
nbval := -p tests.nbval_plugin --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg \
  --nbval-cell-timeout 300
# A file (or notebook) stays on one worker: its cells share a kernel, its tests their fixtures.
pytest := $(python) -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup book test test-slurm gpu ablations lab serve notebooks lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## make .venv with the pinned packages; every other target does this first
	@tools/setup.sh

book: setup ## train a small V-JEPA, probe it, build the book around it
	@$(python) tools/make_book.py

test: setup ## all tests: package, notebooks (strict), planted errors, prose, pages in a browser
	@OMP_NUM_THREADS=1 $(pytest) $(nbval) tests book/*.ipynb

test-slurm: setup ## the scripts of slurm/ under a real SLURM of made-up nodes (Debian, as root)
	@tools/test_slurm.sh

gpu: setup ## GPU tests and benchmarks on this machine, recorded in book/_static/records/gpu.json
	@$(python) tools/gpu_record.py

ablations: setup ## change one part of a laptop recipe at a time, three seeds each (two hours)
	@for table in laptop ablations laptop-adamw; do \
	  OMP_NUM_THREADS=1 $(python) tools/ablate.py --table $$table || exit; done

lab: setup ## open the notebooks in JupyterLab
	@.venv/bin/jupyter lab book

serve: setup ## serve the built book on http://localhost:8000
	@test -f _build/html/index.html || { echo "make serve: no book here yet; run make book"; exit 1; }
	@$(python) -m http.server --bind 127.0.0.1 --directory _build/html 8000

notebooks: setup ## for authors: execute all notebooks again and tidy them
	@$(python) tools/notebooks.py run

lint: setup ## for authors: style, types, shell scripts, notebook rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	@.venv/bin/shellcheck tools/*.sh .ci/run
	@$(python) tools/notebooks.py check

clean: ## remove the built pages and caches; data/, runs/ and .venv stay
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache book/.ipynb_checkpoints
