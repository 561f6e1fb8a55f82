# make help, or read tools/project.py, which does the work on every system.

ifeq ($(OS),Windows_NT)
PYTHON ?= python
else
PYTHON ?= python3
endif
PROJECT = $(PYTHON) tools/project.py
ARGS ?=

.PHONY: help setup run test lab measurements lint clean
.DEFAULT_GOAL := help

help:
	@echo "make run    execute the four notebooks; results go to results/"
	@echo "make test   run every test, the notebooks among them"
	@echo "make lab    open JupyterLab"
	@echo "make lint   check code and notebooks with ruff"
	@echo "make measurements  record the long runs in data/measurements"
	@echo "make setup  only make .venv (the four above do it themselves, once)"
	@echo "make clean  remove .venv and results"
	@echo "PYTHON=python3.12 chooses a Python, ARGS=... is passed on: make test ARGS=tests/test_setup.py"

setup run test lab measurements lint clean:
	@$(PROJECT) $@ $(ARGS)
