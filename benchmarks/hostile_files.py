"""Give every reader of foreign files hostile ones: each must be read or refused in one line.

    python -m benchmarks.hostile_files [--count 400] [--seed 0]

Recipes and overrides, files of a run directory, model directories, adapters, weights and image
folders are spoilt at random: bytes changed or cut, values of other types, nested, repeated, other
encodings, pipes, devices and links in the place of files, pickles that would make a folder; a few
stay as they are. An exception that is no error of ours, a line break in its text, more than
`LIMIT_S` seconds or a pickle that ran is a bug: exit status 1.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save_file

from cache import CacheError
from online_aug.classifier.evaluation import Evaluation
from online_aug.classifier.model import build_classifier
from online_aug.config import Config
from online_aug.config.loading import load_config, resolved_yaml
from online_aug.config.schema import fields
from online_aug.config.sections import FinetuneConfig, GenerationConfig
from online_aug.config.training import ClassifierConfig
from online_aug.data.settings import DataConfig
from online_aug.data.sources import load_splits
from online_aug.diffusion.adapters import find_adapters, named_concepts
from online_aug.diffusion.directory import EMBEDDED, locate_model
from online_aug.diffusion.few_steps import check_few_steps
from online_aug.diffusion.import_adapters import import_adapters
from online_aug.diffusion.loading import load_pipeline
from online_aug.diffusion.schedule_settings import check_schedule
from online_aug.diffusion.weights import check_weights, tensor_shapes
from online_aug.errors import UserError
from online_aug.files import to_json
from online_aug.reporting.html_report import write_report
from online_aug.reporting.metrics import METRICS_FILE, EpochMetrics, Summary, read_metrics
from online_aug.reporting.run_directory import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    SUMMARY_FILE,
    prepare,
    read_summary,
)
from online_aug.reporting.samples import SAMPLES_FILE, Sample, Samples
from online_aug.training.checkpoints import MARKER, check_made_with

LIMIT_S = 60
LEFT_ALONE = 10  # one file of so many stays as it is
RECORD = {"epoch": 1, "step": 3, "train_loss": None, "val_top1": 0.5}
TEXTS = [
    *("null", "[]", "{}", '"x"', "7", "", "true", "NaN", "\0"),
    *("---\n---", "*a", "!!python/name:os"),
    *("[" * 100_000, '{"a":' * 100_000, "- " * 50_000, "9" * 1_000_000, "1" + ":59" * 100_000),
    "a: &a [x,x]\n" + "".join(f"b{n}: &b{n} [{','.join(['*a'] * 9)}]\n" for n in range(9)),
    "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1},*a{n - 1}]\n" for n in range(1, 60)),
]
"""Documents that no reader can use."""
VALUES: list[Any] = [
    *(None, True, -1, 0, 10**12, 1.5, float("nan"), "", "x", "\x1b[31m", "../../x", "a" * 100_000),
    *([], [[]], {}, {"a": {}}, ["os", "system"], ["builtins", "dict"], "/dev/zero"),
]
"""Values in the place of others."""


class Trap:
    """A pickle that makes a folder if it is loaded by running it."""

    def __init__(self, place: Path) -> None:
        """Take the folder's path."""
        self._place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._place),)


class HangError(BaseException):
    """A reader has taken longer than `LIMIT_S`; no `except Exception` stops it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how many inputs of each kind were read and refused; 1 if one did anything else."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile_files", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(Path(folder), options.count, options.seed)
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{number:6d}  {kind}: {outcome}")
    bugs = sum(number for (_, outcome), number in outcomes.items() if outcome.startswith("BUG"))
    print(f"{outcomes.total()} inputs, {bugs} bugs")
    return int(bool(bugs))


def run(folder: Path, count: int, seed: int) -> Counter[tuple[str, str]]:
    """Try `count` inputs, dealt out over all kinds; return how often each had which outcome."""
    found: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        place = folder / f"{number}"
        place.mkdir()
        outcome = _outcome(kind, place, np.random.default_rng([seed, number]))
        if (folder / "ran").exists():
            (folder / "ran").rmdir()
            outcome = "BUG: code was executed"
        if outcome.startswith("BUG"):
            print(f"input {number} of seed {seed}, {kind}: {outcome}", file=sys.stderr)
        found[kind, outcome] += 1
        if (number + 1) % 100 == 0:
            print(f"{number + 1}/{count}", file=sys.stderr)
        shutil.rmtree(place)
    return found


def _outcome(kind: str, place: Path, rng: np.random.Generator) -> str:
    def alarm(number: int, frame: FrameType | None) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(LIMIT_S)
    try:
        KINDS[kind](place, rng)
    except HangError:
        return f"BUG: over {LIMIT_S} s"
    except (UserError, CacheError) as error:
        return "refused" if "\n" not in str(error) or kind == "recipe" else "BUG: several lines"
    except Exception as error:
        return f"BUG: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "read"


def _spoil(path: Path, rng: np.random.Generator) -> None:
    """Change one file: its bytes, its text, one of its values, or what kind of file it is."""
    if not rng.integers(LEFT_ALONE):
        return
    ways = [_change_bytes, _cut, _replace_text, _replace_kind, _trap]
    if path.suffix == ".json":
        ways += [_replace_value] * 5
    ways[rng.integers(len(ways))](path, rng)


def _change_bytes(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    end = len(content) if rng.integers(2) else min(len(content), 4096)  # of values or of a header
    for _ in range(rng.integers(1, 8)):
        content[rng.integers(end)] = rng.integers(256)
    path.write_bytes(bytes(content))


def _cut(path: Path, rng: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def _replace_text(path: Path, rng: np.random.Generator) -> None:
    text = TEXTS[rng.integers(len(TEXTS))]
    path.write_bytes(text.encode(["utf-8", "utf-16", "utf-8"][rng.integers(3)]))


def _replace_kind(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    match rng.integers(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path)


def _trap(path: Path, rng: np.random.Generator) -> None:
    ran = next(parent for parent in path.parents if parent.name.isdigit()).parent / "ran"
    content = {name: Trap(ran) for name in ("param", "state_dict", "learned_embeds_dict")}
    away = path.with_name(f"away-{path.name}")
    torch.save(content, away)
    path.unlink()
    if path.name.startswith(("diffusion_pytorch", "model.")):
        path = path.with_suffix(".bin")
    away.rename(path) if rng.integers(2) else path.symlink_to(away)


def _replace_value(path: Path, rng: np.random.Generator) -> None:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return
    names = sorted(content)
    content[names[rng.integers(len(names))]] = VALUES[rng.integers(len(VALUES))]
    path.write_text(json.dumps(content))


def _recipe(place: Path, rng: np.random.Generator) -> None:
    path = place / "recipe.yaml"
    path.write_text(resolved_yaml(Config()))
    _spoil(path, rng)
    load_config(path)


def _override(place: Path, rng: np.random.Generator) -> None:
    path, keys = place / "recipe.yaml", sorted(fields())
    path.write_text("")
    value = VALUES[rng.integers(len(VALUES))]
    text = TEXTS[rng.integers(len(TEXTS))] if rng.integers(2) else json.dumps(value)
    load_config(path, [f"{keys[rng.integers(len(keys))]}={text}"])


def _run_directory(place: Path, rng: np.random.Generator) -> None:
    text = resolved_yaml(Config())
    prepare(place, text, "digest", resume=True)
    for name in (SUMMARY_FILE, METRICS_FILE, MARKER):
        (place / name).write_text(json.dumps(RECORD) + "\n")
    names = (CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE, METRICS_FILE, MARKER)
    chosen = names[rng.integers(len(names))]
    _spoil(place / chosen, rng)
    readers: Mapping[str, Callable[[], object]] = {
        SUMMARY_FILE: lambda: read_summary(place),
        METRICS_FILE: lambda: read_metrics(place) if (place / METRICS_FILE).exists() else None,
        MARKER: lambda: check_made_with(place, {"epoch": 1}),
    }
    (place / SUMMARY_FILE).unlink() if chosen in (CONFIG_FILE, ENVIRONMENT_FILE) else None
    readers.get(chosen, lambda: prepare(place, text, "digest", resume=True))()


def _report(place: Path, rng: np.random.Generator) -> None:
    shares, counts = {"a": 0.5, "b": 1}, {"off-class": 1}
    epoch = dict.fromkeys(_names_in(EpochMetrics), 1) | {"rejections": counts}
    summary = dict.fromkeys(_names_in(Summary), 1) | {
        **dict.fromkeys(("per_class", "per_group", "per_shots", "refused_shares"), shares),
        **dict.fromkeys(("refusals", "rejections"), counts),
        "config_digest": "x",
    }
    confusion = {"a": {"a": 1, "b": 1}, "b": {"b": 2}}
    evaluation = dict.fromkeys(_names_in(Evaluation), 1) | {
        **dict.fromkeys(("per_class", "per_group", "per_shots"), shares),
        "confusion": confusion,
    }
    sample = Sample(group="random", pictures={"source": "UklGRg=="}, source="a", asked_for="b",
                    method="m", soft_label=shares, loss=1.0, taken_for="a")  # fmt: skip
    contents = {
        CONFIG_FILE: resolved_yaml(Config()),
        ENVIRONMENT_FILE: json.dumps({"argv": ["x"], "gpus": [], "packages": {}}),
        METRICS_FILE: json.dumps(epoch) + "\n",
        SUMMARY_FILE: json.dumps(summary),
        EVALUATION_FILE: json.dumps(evaluation),
        SAMPLES_FILE: to_json(Samples(looked_at=1, samples=[sample])),
    }
    for name, text in contents.items():
        (place / name).write_text(text)
    _spoil(place / list(contents)[rng.integers(len(contents))], rng)
    write_report(place, place / "page.html")


def _names_in(record: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


def _model(place: Path, rng: np.random.Generator) -> None:
    model = Path(shutil.copytree(EMBEDDED["image_to_image"], place / "model"))
    files = sorted(path for path in model.rglob("*") if path.suffix in (".json", ".safetensors"))
    _spoil(files[rng.integers(len(files))], rng)
    config = GenerationConfig(model=str(model), num_inference_steps=10, resolution=64)
    folder = locate_model(config, "image_to_image")
    check_weights(folder)
    check_schedule(config.scheduler, folder)
    check_few_steps(config, folder)
    load_pipeline(folder, "float32", "image_to_image")


def _adapters(place: Path, rng: np.random.Generator) -> None:
    model, folder = EMBEDDED["image_to_image"], place / "adapters"
    folder.mkdir()
    if rng.integers(2):
        path = folder / ("x_emb.safetensors" if rng.integers(2) else "learned_embeds.bin")
        settings = json.loads((model / "text_encoder" / "config.json").read_text())
        _write({"<emu>": torch.zeros(settings["hidden_size"])}, path)
    else:
        path = folder / ("lora.safetensors" if rng.integers(2) else "adapter_model.bin")
        shapes = tensor_shapes(model / "unet").items()
        layer, (outputs, inputs) = next(each for each in shapes if "to_q.weight" in each[0])
        lora = f"unet.{layer.removesuffix('.weight')}.lora"
        a, b = torch.ones(2, inputs), torch.ones(outputs, 2)
        _write({f"{lora}_A.weight": a, f"{lora}_B.weight": b}, path)
    _spoil(path, rng)
    if files := find_adapters(folder):
        mode = "lora" if files.lora else "textual_inversion"
        import_adapters(files, named_concepts(["emu"], "bird"), FinetuneConfig(mode=mode), model)


def _weights(place: Path, rng: np.random.Generator) -> None:
    path = place / ("weights.pt" if rng.integers(2) else "weights.safetensors")
    settings = ClassifierConfig(name="test_resnet")
    _write(build_classifier(settings, 3).state_dict(), path)
    _spoil(path, rng)
    build_classifier(settings.model_copy(update={"checkpoint": path}), 3, image_size=32)


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def _images(place: Path, rng: np.random.Generator) -> None:
    forms = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "avif": "AVIF"}
    pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for name in ("a", os.fsdecode(b"b\xe9\x1b")):
        (place / name).mkdir()
        for number in range(6):
            suffix = list(forms)[rng.integers(len(forms))]
            path = place / name / f"{number}.{suffix}"
            PIL.Image.fromarray(pixels).save(path, forms[suffix])
    _spoil(path, rng)
    policy = "error" if rng.integers(2) else "skip"
    splits = load_splits(DataConfig(source=str(place), on_bad_image=policy))
    str(splits).encode()
    list(map(splits.train.load, range(len(splits.train))))


KINDS: Mapping[str, Callable[[Path, np.random.Generator], None]] = {
    "recipe": _recipe,
    "override": _override,
    "run directory": _run_directory,
    "report": _report,
    "model": _model,
    "adapters": _adapters,
    "weights": _weights,
    "images": _images,
}
"""What is spoilt, and a function that writes it, spoils it and reads it."""

if __name__ == "__main__":
    sys.exit(main())
