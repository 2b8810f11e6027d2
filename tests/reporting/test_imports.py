import ast
from pathlib import Path

import pytest

import online_aug.reporting

FILES = sorted(Path(online_aug.reporting.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_importing_the_package_does_not_load_tensorboard(file: Path) -> None:
    at_import = [node for node in ast.parse(file.read_text()).body if _is_import(node)]
    assert not any("tensorboard" in ast.unparse(node) for node in at_import)


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))
