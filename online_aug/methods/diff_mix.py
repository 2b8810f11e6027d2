"""Diff-Mix (arXiv:2403.19600) and the baselines of its paper: image-to-image translation."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float

from online_aug.labels import one_hot, rare_class_weights, translation_label
from online_aug.methods.adaptive import StrengthSettings, draw_strength
from online_aug.methods.base import (
    Method,
    MethodContext,
    MethodSettings,
    Picture,
    SharedSections,
    Source,
    within_class,
)
from online_aug.methods.foreground_mix import saliency_table, source_masks, widened
from online_aug.request import GenerationRequest, Servable
from online_aug.settings import Fraction, Positive, Strengths


class DiffMixSettings(StrengthSettings):
    """The keys of translation towards another class."""

    target_balance: Fraction = 0.0
    """A class of n images is drawn as target in proportion to 1 / (n + 1)^x: 0 draws all classes
    alike, 1 is Diff-Mix's for long tails."""
    gamma: Positive = 0.8
    """Exponent of the soft label `(1 - s^gamma) y_source + s^gamma y_target`, above 0."""


class DiffMix(Method):
    """Translate towards any class, the own one included; the label lies in between."""

    Settings = DiffMixSettings
    settings: DiffMixSettings

    def check(self, config: SharedSections) -> None:
        """Raise `ValueError` if a strength would run no step."""
        self.settings.check_steps(config)

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw target class, strength and noise."""
        weights = rare_class_weights(context.class_sizes, self.settings.target_balance)
        target = int(rng.choice(context.num_classes, p=weights))
        strength = draw_strength(self.settings, source, variant, target, context, rng)
        return self.request(source, variant, context, rng, target_label=target, strength=strength)

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[np.ndarray, " k"]]:
        """Return the generated image with a label between source and target."""
        return generated, translation_label(
            request.source_label,
            request.target_label,
            request.strength,
            num_classes=context.num_classes,
            gamma=self.settings.gamma,
        )


class RealMix(DiffMix):
    """Diff-Mix by a model that was not fine-tuned."""

    uses_finetuning: ClassVar[bool] = False


NO_OBJECT = "saliency: no object found"
NOTHING_TO_EDIT = "saliency: nothing is left to draw anew"


class WithinClassSettings(StrengthSettings):
    """The keys of translation within the own class."""

    edits: Literal["all", "object", "background"] = "all"
    """Part that is drawn anew, the rest keeps its pixels: all of the image, the object alone, or
    all but the object (DA-Fusion's `mask` and `inverted`); `saliency` says where the object is."""
    mask_growth: Fraction = 1 / 32
    """If a part is kept: width of the window within which the object's mask is widened first, a
    fraction of the side (DA-Fusion: 16 of 512 px)."""


class DiffAug(Method):
    """Translate within the own class, all of an image or a part of it."""

    Settings: ClassVar[type[MethodSettings]] = WithinClassSettings
    settings: WithinClassSettings
    keeps_class: ClassVar[bool] = True

    @property
    def needs_saliency(self) -> bool:
        """Whether a part of the image is kept."""
        return self.settings.edits != "all"

    def check(self, config: SharedSections) -> None:
        """Raise `ValueError` if a strength would run no step."""
        self.settings.check_steps(config)

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw strength and noise."""
        rng.choice(context.num_classes)  # Diff-Mix's draw, so that strength and noise are its own
        strength = draw_strength(self.settings, source, variant, source.label, context, rng)
        kept = self._kept_part(context) if self.needs_saliency else {}
        return self.request(source, variant, context, rng, strength=strength, **kept)

    def _kept_part(self, context: MethodContext) -> dict[str, Any]:
        return {
            "keeps": "background" if self.settings.edits == "object" else "foreground",
            "mask_growth": self.settings.mask_growth,
            "saliency_version": saliency_table(context, self.name).version,
        }

    def refusal(self, request: GenerationRequest, context: MethodContext) -> str | None:
        """Return why not to draw a part anew: no object was found, or nothing is left beside it."""
        if request.keeps == "nothing":
            return None
        side = request.resolution
        if not source_masks([request], context, side).any():
            return NO_OBJECT
        return NOTHING_TO_EDIT if self.kept([request], context, side).all() else None

    def kept(
        self, requests: Sequence[GenerationRequest], context: MethodContext, side: int
    ) -> Bool[np.ndarray, "b s s"]:
        """Mark the part of each image that is not drawn anew."""
        kept = np.zeros((len(requests), side, side), np.bool_)
        for place, request in enumerate(requests):
            if request.keeps != "nothing":
                (mask,) = source_masks([request], context, side)
                mask = widened(mask, round(request.mask_growth * side))
                kept[place] = mask if request.keeps == "foreground" else ~mask
        return kept

    def misfit(self, image: Servable) -> str | None:
        """Return the reason against an image between two classes."""
        return within_class(image)

    def compose(
        self,
        source: Callable[[], Picture],
        generated: Picture,
        request: Servable,
        context: MethodContext,
        rng: np.random.Generator,
    ) -> tuple[Picture, Float[np.ndarray, " k"]]:
        """Return the generated image with the label of its class."""
        return generated, one_hot(request.source_label, context.num_classes)


class RealGuidance(DiffAug):
    """Diff-Aug by a model that was not fine-tuned."""

    uses_finetuning: ClassVar[bool] = False


class DiffGen(DiffAug):
    """Draw images of the own class from noise, by all of the trajectory."""

    Settings = MethodSettings

    @property
    def needs_saliency(self) -> bool:
        """Whether a part of an image is kept, which is of no image here."""
        return False

    def check(self, config: SharedSections) -> None:
        """Accept everything: there is no strength."""

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw noise."""
        rng.choice(context.num_classes)  # Diff-Mix's draws of class and strength, see DiffAug
        rng.integers(len(StrengthSettings.model_fields["strength"].default))
        return self.request(source, variant, context, rng, starts_from="noise")


class RealGen(DiffGen):
    """Diff-Gen by a model that was not fine-tuned, which knows the classes by their names."""

    uses_finetuning: ClassVar[bool] = False


class DaFusionSettings(WithinClassSettings):
    """The keys of DA-Fusion."""

    strength: Literal["adaptive"] | Strengths = (1.0, 0.75, 0.5, 0.25)
    """Fraction of the diffusion trajectory replayed, (0, 1]; one value or a list to draw from, or
    `adaptive`: for each class the largest that the gate accepts, which needs `gate.classifier`."""


class DaFusion(DiffAug):
    """Translate within the own class with DA-Fusion's defaults (arXiv:2302.07944)."""

    Settings = DaFusionSettings
    presets: ClassVar = {
        "mixing": {"policy": "local", "synthetic_probability": 0.5},
        "generation": {"variants_per_image": 10},
        "finetune": {"mode": "textual_inversion"},
    }
