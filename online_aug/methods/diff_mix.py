"""Diff-Mix (arXiv:2403.19600) and the baselines of its paper: image-to-image translation."""

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

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


class DiffAug(Method):
    """Translate within the own class."""

    Settings: ClassVar[type[MethodSettings]] = StrengthSettings
    settings: StrengthSettings

    def check(self, config: SharedSections) -> None:
        """Raise `ValueError` if a strength would run no step."""
        self.settings.check_steps(config)

    def plan(
        self, source: Source, variant: int, context: MethodContext, rng: np.random.Generator
    ) -> GenerationRequest:
        """Draw strength and noise."""
        rng.choice(context.num_classes)  # Diff-Mix's draw, so that strength and noise are its own
        strength = draw_strength(self.settings, source, variant, source.label, context, rng)
        return self.request(source, variant, context, rng, strength=strength)

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


class DaFusionSettings(StrengthSettings):
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
