"""The model card of a run: data, method, share of synthetic images, results, and how to load it.

It is a README in the form of the Hugging Face hub, whose head other programs read. It names no path
of this machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from online_aug.classifier.evaluation import Evaluation
from online_aug.config import Config
from online_aug.console import amount, duration, percent
from online_aug.data.image_sets import Splits
from online_aug.files import write_atomically
from online_aug.reporting.metrics import Summary

CARD_FILE = "README.md"
_SHOWN_CLASSES, _SHOWN_LOWEST = 20, 10
_TAGS = ("image-classification", "timm", "online-aug", "data-augmentation", "diffusion")
_LOADING = """\
```python
import json
from pathlib import Path

import timm
from PIL import Image

folder = "."  # where these files are; on the hub: timm.create_model("hf-hub:USER/NAME", ...)
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
names = json.loads(Path(folder, "config.json").read_text())["label_names"]
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("photo.jpg").convert("RGB")).unsqueeze(0))
print(names[int(logits.argmax())], float(logits.softmax(1).max()))
```

`online-aug predict FOLDER photo.jpg more_photos/` does the same for many images, with the very
pixels of the run's own evaluation, and writes CSV or JSON.
"""


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """All that a model card tells."""

    name: str
    """Name of the run."""
    config: Config
    splits: Splits
    summary: Summary
    evaluation: Evaluation
    """Result on the test split after the last epoch."""


def write_model_card(folder: Path, content: CardContent) -> None:
    """Write `README.md` beside the weights of a run."""
    write_atomically(folder / CARD_FILE, model_card(content))


def model_card(content: CardContent) -> str:
    """Return the card as Markdown with a head in YAML."""
    parts = [
        f"---\n{_head(content)}---",
        f"# {_plain(content.name)}",
        _opening(content),
        "## Results",
        *_results(content),
        "## Training",
        *_training(content),
        "## Use",
        _LOADING,
        "## Limits",
        "It names one of its classes for any image, whatever is in it. Data and diffusion model "
        "have licences of their own: read them before you publish or sell what was made with them.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _head(content: CardContent) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data = public_name(content.config.data.source)
    figures = {"accuracy": content.evaluation.top1, "accuracy_top5": content.evaluation.top5}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type=kind,
            metric_value=round(value, 6),
        )
        for kind, value in figures.items()
    ]
    head = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[*_TAGS, *map(public_name, _method_names(content))],
        model_name=content.name,
        eval_results=results,
    )
    return str(head.to_yaml()).strip() + "\n"


def _opening(content: CardContent) -> str:
    config, names = content.config, content.splits.train.class_names
    start = "timm's weights" if config.classifier.pretrained else "new weights"
    if config.classifier.checkpoint is not None:
        start = f"the weights of `{config.classifier.checkpoint.name}`"
    average = "" if config.optim.ema is None else f", averaged over steps ({config.optim.ema:g})"
    shown = ", ".join(map(_plain, names[:_SHOWN_CLASSES]))
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    side = config.data.image_size
    images = "real and synthetic images" if _synthetic(content) else "real images alone"
    return (
        f"An image classifier: `{public_name(config.classifier.name)}`, trained from {start} with "
        f"online-aug on {images}. It takes images of {side} x {side} px and knows "
        f"{len(names):,} classes: {shown}{more}.\n\n"
        f"The weights are those after the last epoch{average}."
    )


def _results(content: CardContent) -> Iterator[str]:
    found, summary = content.evaluation, content.summary
    yield f"On the {amount(found.images, 'image')} of the test split, which selected nothing:"
    rows = [
        ("top-1 accuracy", percent(found.top1)),
        ("top-5 accuracy", percent(found.top5)),
        ("cross-entropy", f"{found.loss:.4f}"),
    ]
    if summary.best_on_validation is not None:
        rows.append(("top-1 at the best epoch by validation", summary.best_on_validation))
    if found.worst_group is not None:
        rows.append(("top-1 of the worst group", percent(found.worst_group)))
    rows += [(f"top-1, {part} training images", percent(s)) for part, s in found.per_shots.items()]
    yield _table(("measure", "value"), rows)
    lowest = sorted(found.per_class.items(), key=lambda entry: entry[1])[:_SHOWN_LOWEST]
    yield "The classes it knows least:"
    yield _table(("class", "top-1"), [(_plain(name), percent(share)) for name, share in lowest])


def _training(content: CardContent) -> Iterator[str]:
    config, splits, summary = content.config, content.splits, content.summary
    optim, served = config.optim, summary.served
    synthetic = _synthetic(content)
    yield _table(
        ("", ""),
        [
            ("data", f"`{public_name(config.data.source)}`: {_plain(_counts(splits))}"),
            (
                "method",
                ", ".join(f"`{public_name(name)}`" for name in _method_names(content)) or "none",
            ),
            (
                "share of synthetic images",
                f"{percent(synthetic / max(1, served.slots))} of {served.slots:,} images served: "
                f"{served.fresh:,} fresh, {served.cached:,} cached, {served.composed:,} composed",
            ),
            ("generated images", summary.made_text),
            ("generator", _generator(config)),
            (
                "optimizer",
                f"`{optim.name}`, learning rate {optim.lr:g}, batches of {optim.batch_size}",
            ),
            ("length", f"{amount(summary.epochs, 'epoch')}, {duration(summary.wall_s)}"),
            ("seed", str(config.run.seed)),
        ],
    )
    if synthetic:
        yield "Settings of the method:"
        yield f"```yaml\n{yaml.safe_dump(_settings(config), sort_keys=False).strip()}\n```"


def _method_names(content: CardContent) -> list[str]:
    return [settings.name for settings in content.config.methods if _synthetic(content)]


def _synthetic(content: CardContent) -> int:
    served = content.summary.served
    return served.fresh + served.cached + served.composed


def _counts(splits: Splits) -> str:
    return f"{len(splits.train)} train, {len(splits.val)} val, {len(splits.test)} test images"


def _generator(config: Config) -> str:
    if not config.is_planned:
        return "none"
    return f"`{public_name(config.generation.model)}`, {config.generation.scheduler}"


def _settings(config: Config) -> list[Any]:
    return [_without_paths(settings.model_dump(mode="python")) for settings in config.methods]


def _without_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        name: value.name if isinstance(value, Path) else value for name, value in values.items()
    }
    kept["name"] = public_name(str(kept["name"]))
    return {name: list(v) if isinstance(v, tuple) else v for name, v in kept.items()}


def public_name(name: str) -> str:
    """Return the name of a data set, model or method, of a path only its last part."""
    is_path = Path(name).exists() or name.startswith((".", "/", "~")) or ".py:" in name
    return Path(name).absolute().name if is_path or name.count("/") > 1 else name


def _table(head: Sequence[str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _plain(text: str) -> str:
    """Write a name so that Markdown shows it as it is, on one line."""
    letters = (f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|~$" else letter for letter in text)
    return " ".join("".join(letters).split())
