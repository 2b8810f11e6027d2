"""The findings of a study of masks, as a table, rows of a file, and a verdict."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from online_aug.config import Config
from online_aug.console import percent
from online_aug.methods.foreground_mix import (
    SOURCE_TOO_SMALL,
    TARGET_TOO_SMALL,
    UNION_TOO_LARGE,
)

COVERED = 0.8
"""Share of an object that a mask must hold for it to count as covered."""
MOST_INCOMPLETE = 0.2
"""Share of sources that may be incomplete before SGD-Mix's assumption counts as broken."""
AGREED = 0.5
"""Intersection over union from which two masks count as one."""
KINDS = ("otsu", "grabcut")
REASONS = {
    SOURCE_TOO_SMALL: "source",
    TARGET_TOO_SMALL: "background",
    UNION_TOO_LARGE: "union",
}
"""Which foreground is at fault, by the reason for a refusal."""
Mask = Bool[np.ndarray, "s s"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One image as it is cut out and mixed by one kind of mask."""

    digest: str
    mask: Mask
    background: str
    """Digest of the image that gives the background."""
    background_mask: Mask
    iou: float
    covered: float
    """Share of the true object, or of the other way's foreground, that is in the mask."""
    refused: str | None
    """`source` or `background` if its foreground is too small, `union` if both cover too much."""


@dataclass(frozen=True)
class Report:
    """The answer in words and numbers."""

    config: Config
    against: str
    is_truth: bool
    cuts: Mapping[str, Sequence[Cut]]
    """By kind of mask, in the same order of images."""

    @property
    def used(self) -> str:
        """Kind of mask that the configuration uses."""
        return str(self.config.saliency.chosen_mask)

    def name(self, kind: str) -> str:
        """Return the name of a kind of mask, with a mark at the one in use."""
        return f"{kind} (in use)" if kind == self.used else kind

    def incomplete(self, kind: str) -> float:
        """Return the share of sources that are not covered, or on which two ways disagree."""
        held = [c.covered >= COVERED if self.is_truth else c.iou >= AGREED for c in self.cuts[kind]]
        return 1 - float(np.mean(held))

    def title(self, total: int) -> str:
        """Return the heading."""
        source = Path(self.config.data.source).name
        return f"Foregrounds of {source}: {len(self.cuts[self.used])} of {total} images"

    def text(self, total: int) -> str:
        """Return table and verdict as Markdown."""
        saliency = self.config.saliency
        held = "covered to 80 %" if self.is_truth else f"agree (IoU {AGREED})"
        heads = [
            "mask",
            "mean IoU",
            held,
            "cut out",
            *(f"refused: {name}" for name in REASONS.values()),
        ]
        lines = [
            f"# {self.title(total)}",
            "",
            f"Maps by `saliency.method: {saliency.chosen_method}`, compared with {self.against}.",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *(f"| {' | '.join(self._row(kind))} |" for kind in self.cuts),
            "",
            self.verdict(),
        ]
        return "\n".join(lines) + "\n"

    def _row(self, kind: str) -> list[str]:
        cuts = self.cuts[kind]
        shares = [
            1 - self.incomplete(kind),
            float(np.mean([cut.mask.mean() for cut in cuts])),
            *(float(np.mean([cut.refused == name for cut in cuts])) for name in REASONS.values()),
        ]
        iou = f"{np.mean([cut.iou for cut in cuts]):.3f}"
        return [self.name(kind), iou, *map(percent, shares)]

    def verdict(self) -> str:
        """Say whether the assumption of SGD-Mix holds, and what to try if it does not."""
        share = self.incomplete(self.used)
        if share <= MOST_INCOMPLETE:
            way = "covered" if self.is_truth else "seen alike"
            return f"The foregrounds hold the objects: {percent(1 - share)} are {way}."
        ways = [
            "`saliency.method: masks` with a folder of masks",
            "`saliency.method: segmenter` with a model that segments such images",
        ]
        other = next(kind for kind in KINDS if kind != self.used)
        if self.incomplete(other) < share:
            found = percent(1 - self.incomplete(other))
            ways.insert(0, f"`saliency.mask: {other}` ({found} here)")
        if self.config.saliency.chosen_method != "diffusion":
            ways.insert(-2, "`saliency.method: diffusion`")
        if self.is_truth:
            said = (
                "SGD-Mix's assumption is broken for this data: the foregrounds of "
                f"{percent(share)} of the sources hold less than 80 % of the object, so other "
                "classes' objects stay in the mix under the source's label."
            )
        else:
            said = (
                f"The two ways disagree on {percent(share)} of the sources, so at least one is "
                "wrong there; the sheet shows which. If it is the one in use, SGD-Mix's assumption "
                "is broken for this data. `--truth DIR` compares with true masks."
            )
        return f"{said} Try {'; '.join(ways)}."

    def csv(self, names: Mapping[str, tuple[str, str]]) -> str:
        """Return a row for each image and kind of mask."""
        out = StringIO()
        writer = csv.writer(out, lineterminator="\n")
        shown = ("iou", "covered", "cut_out", "refused")
        writer.writerow(("image", "class", "mask", *shown, "background"))
        for kind, cuts in self.cuts.items():
            for cut in cuts:
                measured = (cut.iou, cut.covered, float(cut.mask.mean()))
                writer.writerow(
                    (*names[cut.digest], kind, *(f"{value:.4f}" for value in measured))
                    + (cut.refused or "", names[cut.background][0])
                )
        return out.getvalue()
