"""Samples of a run as cards: the stages of an image, what was asked for, and what became of it."""

from collections.abc import Iterator
from html import escape

from online_aug.reporting.html_report.page import paragraph, picture, section
from online_aug.reporting.samples import PICTURE_PX, Sample, Samples

_GROUPS = {
    "random": ("Synthetic images, drawn at random", "Images that this run was served."),
    "hardest": (
        "The hardest synthetic images",
        "Those whose soft label is farthest from what the classifier says after the last epoch: "
        "hard images, or wrong labels.",
    ),
    "rejected": ("Rejected images", "They are never served. The first of each reason are kept."),
}


def sample_sections(samples: Samples) -> Iterator[str]:
    """Return a section for each group of samples that the run has."""
    for group, (title, about) in _GROUPS.items():
        chosen = samples.of(group)
        if group == "hardest" and chosen:
            about = f"{about} Of {samples.looked_at} images looked at."
        drawn = "".join(_sample(each) for each in chosen)
        if drawn:
            yield section(title, paragraph(about), f'<div class="samples">{drawn}</div>')


def _sample(sample: Sample) -> str:
    stages = "".join(
        f"<div>{picture(data, f'{stage}: {_words(sample)}', is_tiny=_is_tiny(data))}"
        f"<small>{escape(stage)}</small></div>"
        for stage, data in sample.pictures.items()
    )
    lines = "<br>".join(escape(line) for line in _lines(sample))
    return f'<div class="sample"><div class="stages">{stages}</div>{lines}</div>'


def _words(sample: Sample) -> str:
    return f"{sample.source}, asked for {sample.asked_for}"


def _is_tiny(data: str) -> bool:
    return len(data) < PICTURE_PX * 40


def _lines(sample: Sample) -> Iterator[str]:
    strength = "" if sample.strength is None else f", strength {sample.strength:.2f}"
    by = f" by {sample.method}" if sample.method else ""
    yield f"{sample.source}, asked for {sample.asked_for}{by}{strength}"
    if sample.soft_label:
        ordered = sorted(sample.soft_label.items(), key=lambda entry: -entry[1])
        named = [f"{name} {mass:.2f}" for name, mass in ordered[:3]]
        rest = sum(mass for _, mass in ordered[3:])
        yield f"label: {', '.join([*named, *([f'others {rest:.2f}'] if rest else [])])}"
    if sample.loss is not None:
        yield f"taken for {sample.taken_for}, loss {sample.loss:.2f}"
    if sample.reason is not None:
        yield f"rejected: {sample.reason}"
    if sample.scores:
        yield ", ".join(f"{name.replace('_', ' ')} {v:.2f}" for name, v in sample.scores.items())
