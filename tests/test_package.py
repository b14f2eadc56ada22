"""What notebooks check holds of the package that they make. A file of its own: with all notebooks
run twice in one file, one worker was at it long after the other had done the rest."""

import importlib

import pytest
from test_notebooks import LIBRARY, module_of, over, run_against
from test_notebooks import stage as stage  # a fixture


@over([path for path in LIBRARY if module_of(path)])
def test_runs_against_the_package(path, stage):
    "What a user imports is what gets tested, not its twin in the notebook's memory."
    if wrong := run_against(importlib.import_module(module_of(path)), path):
        pytest.fail(wrong, pytrace=False)
