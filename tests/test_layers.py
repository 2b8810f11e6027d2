"""The dependency rule, read from the imports: who may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("online_aug", "cache")
DIFFUSION = {"diffusers", "peft", "transformers", "xformers"}
SIDES = {"methods", "generation", "dataloader"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports_of(path):
    """Dotted names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(folder, is_forbidden):
    """What files under a folder import against the rule, as `file: name`."""
    files = [path for path in FILES if path.is_relative_to(ROOT / folder)]
    assert files, f"nothing to check in {folder}"
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imports_of(path)
        if is_forbidden(name)
    ]


def is_within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_cache_knows_neither_torch_nor_the_other_package():
    assert offenders("cache", lambda name: is_within(name, "torch", "online_aug")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_pickled(package):
    assert offenders(package, lambda name: is_within(name, "pickle", "shelve", "dill")) == []


@pytest.mark.parametrize("side", sorted(SIDES))
def test_methods_generation_and_dataloader_do_not_know_one_another(side):
    others = [f"online_aug.{other}" for other in sorted(SIDES - {side})]
    assert offenders(f"online_aug/{side}", lambda name: is_within(name, *others)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_only_generation_and_pretraining_know_the_diffusion_libraries(package):
    found = offenders(package, lambda name: is_within(name, *DIFFUSION))
    allowed = ("online_aug/generation/", "online_aug/pretraining/")
    assert [line for line in found if not line.startswith(allowed)] == []


def test_only_the_saliency_package_knows_pytorch_grad_cam():
    found = offenders("online_aug", lambda name: is_within(name, "pytorch_grad_cam"))
    assert found
    assert all(line.startswith("online_aug/saliency/") for line in found)


def test_nothing_depends_on_how_the_embedded_model_was_trained():
    found = offenders("online_aug", lambda name: is_within(name, "tools.embedded_model"))
    assert [line for line in found if not line.startswith("online_aug/pretraining/")] == []


def test_the_cache_is_used_through_its_public_names_outside_of_its_folder():
    inner = {f"cache.{path.stem}" for path in (ROOT / "cache").glob("[a-z]*.py")}
    for side in ("generation", "dataloader"):
        assert offenders(f"online_aug/{side}", lambda name: is_within(name, *inner)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_depends_on_the_script(package):
    assert offenders(package, lambda name: is_within(name, "train")) == []


@pytest.mark.parametrize(
    "module", ["online_aug", "cache", "online_aug.cli.arguments", "online_aug.producer", "train"]
)
def test_importing_is_fast_because_torch_stays_out(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
