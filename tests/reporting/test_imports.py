import ast
from pathlib import Path

import pytest

import online_aug.reporting

FILES = sorted(Path(online_aug.reporting.__path__[0]).rglob("*.py"))


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "accelerate")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_importing_the_package_loads_no_tracker(file: Path) -> None:
    at_import = [ast.unparse(node) for node in ast.parse(file.read_text()).body if _is_import(node)]
    found = [line for line in at_import if any(f" {name}" in line for name in TRACKERS)]
    assert found == []


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))
