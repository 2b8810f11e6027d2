"""The dependency rule, read from the imports: a file imports only from what stands before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("cache.errors", "cache.text"),
    ("cache.keys", "cache.codecs", "cache.record", "cache.rejection"),
    "cache.backend",
    ("cache.reader", "cache.store", "cache.writer", "cache"),
    ("cache.exchange", "cache.contact_sheet"),
    "cache.html_page",
    "cache.commands",
    "cache.__main__",
    "online_aug.errors",
    "online_aug.documents",
    "online_aug.files",
    "online_aug.console",
    ("online_aug.processes", "online_aug.cores"),
    "online_aug.file_digests",
    "online_aug.settings",
    "online_aug.seeding",
    "online_aug.labels",
    "online_aug.request",
    "online_aug.saliency",
    "online_aug.data",
    "online_aug.methods",
    "online_aug.planning",
    "online_aug.config",
    "online_aug.loader",
    "online_aug.image_server",
    "online_aug.diffusion",
    "online_aug.distributed",
    "online_aug.classifier",
    "online_aug.generation",
    "online_aug.experiment",
    "online_aug.finetuning",
    "online_aug.producer",
    "online_aug.comparison.paired",
    "online_aug.reporting",
    "online_aug.training",
    "online_aug.own_loop",
    "online_aug.comparison",
    "online_aug.studies",
    "online_aug.cli",
    ("online_aug", "online_aug.__main__"),
)
"""From the bottom to the top. Modules of one row may import one another."""

DIFFUSION = ("diffusers", "peft", "transformers", "xformers")
LARGEST_FILE_LINES = 350
LARGEST_PACKAGE_FILES = 12
FILES = sorted(path for top in ("cache", "online_aug") for path in (ROOT / top).rglob("*.py"))


def module_of(path):
    """The dotted name of a file of ours."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer_of(name):
    """The number of the row that a module belongs to: the row with its longest prefix."""
    rows = [(row,) if isinstance(row, str) else row for row in LAYERS]
    prefixes = {prefix: number for number, row in enumerate(rows) for prefix in row}
    fitting = [prefix for prefix in prefixes if is_within(name, prefix)]
    assert fitting, f"{name} has no layer"
    return prefixes[max(fitting, key=len)]


def imports_of(path):
    """The dotted names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(is_forbidden, *allowed):
    """List the imports that break a rule, as `file: name`, outside of the `allowed` packages."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in FILES
        if not is_within(module_of(path), *allowed)
        for name in imports_of(path)
        if is_forbidden(name)
    ]


def module_named(name):
    """The module of ours that an imported name is or lies in."""
    modules = {module_of(path) for path in FILES}
    return name if name in modules else name.rpartition(".")[0]


def test_imports_run_one_way():
    upwards = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        for name in imports_of(path)
        if is_within(name, "cache", "online_aug")
        if layer_of(module_named(name)) > layer_of(module_of(path))
    ]
    assert upwards == []


def test_only_the_cache_s_own_folder_reaches_behind_its_public_names():
    inner = (
        "cache.backend",
        "cache.exchange",
        "cache.html_page",
        "cache.commands",
        "cache.reader",
        "cache.store",
    )
    found = offenders(lambda name: is_within(name, *inner), "cache", "online_aug.cli")
    assert found == []


def test_the_cache_knows_no_torch():
    assert offenders(lambda name: is_within(name, "torch"), "online_aug") == []


def test_nothing_is_pickled():
    assert offenders(lambda name: is_within(name, "pickle", "shelve", "dill")) == []


def test_only_diffusion_generation_and_finetuning_know_the_diffusion_libraries():
    allowed = ("online_aug.diffusion", "online_aug.generation", "online_aug.finetuning")
    allowed += ("online_aug.saliency.segmenter",)  # transformers, once an image is to be segmented
    assert offenders(lambda name: is_within(name, *DIFFUSION), *allowed) == []


def test_only_the_saliency_package_knows_pytorch_grad_cam():
    assert offenders(lambda name: is_within(name, "pytorch_grad_cam"), "online_aug.saliency") == []


def test_only_training_and_distributed_know_deepspeed():
    allowed = ("online_aug.training", "online_aug.distributed")
    assert offenders(lambda name: is_within(name, "deepspeed"), *allowed) == []


def test_no_package_depends_on_the_script_or_the_tools():
    assert offenders(lambda name: is_within(name, "train", "tools")) == []


def test_packages_and_files_are_of_a_size_to_read():
    long = [str(path) for path in FILES if len(path.read_text().splitlines()) > LARGEST_FILE_LINES]
    assert long == []
    folders = {path.parent for path in FILES}
    crowded = [str(f) for f in folders if len(list(f.glob("*.py"))) > LARGEST_PACKAGE_FILES]
    assert crowded == []


@pytest.mark.parametrize(
    "module", ["online_aug", "cache", "online_aug.cli.train", "online_aug.producer.__main__"]
)
def test_importing_is_fast_because_torch_stays_out(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
