"""The part of the configuration that says what fills a slot."""

from typing import Literal

from pydantic import Field, model_validator

from online_aug.settings import Count, Fraction, Positive, Section


class MixingConfig(Section):
    """How real and synthetic samples share a batch."""

    policy: Literal["global", "local", "concat"] = "global"
    """A synthetic sample takes the place of a real one and comes from the whole pool (`global`,
    Diff-Mix) or is made from that very image (`local`, DA-Fusion); or it is added, and every real
    image is seen as well (`concat`, DiffuseMix)."""
    synthetic_probability: Fraction = 0.3
    """Probability that a slot of the batch takes a synthetic sample, [0, 1]; their share of the
    longer epoch with `concat`."""
    final_probability: Fraction | None = None
    """The same in the last epoch; null keeps it as it is in the first."""
    probability_schedule: Literal["linear", "cosine"] = "linear"
    """How it gets there."""
    class_probability: dict[str, Fraction] = Field(default_factory=dict)
    """Probabilities of classes that have their own in all epochs, by name: of the real image that a
    synthetic sample would replace."""
    starvation: Literal["substitute", "wait"] = "substitute"
    """No synthetic sample ready: serve the real one and count it, or wait for the generator."""
    max_times_sampled: Count | None = None
    """Times one generated image may be served in a run; null is no limit."""
    samples_per_insert: Positive | None = None
    """Times a generated image is served on average, kept like Reverb's rate limiter does: with too
    few images real ones are served, with too many the generator pauses (in place of
    `generation.max_ahead`); null only reports it."""
    min_inserts: Count = 1
    """Images there must be before the first is served, with `samples_per_insert`."""
    sampling_tolerance: Positive | None = None
    """Served images by which the ratio may be missed either way; null is ten times the ratio, and
    at least 10."""
    imported: Literal["beside", "only"] | None = None
    """Serve images that `python -m cache import` brought and that say of which classes they are:
    `beside` those of the plan, or `only` them, without a generator; null serves none."""

    @property
    def is_synthetic(self) -> bool:
        """Whether generated images are served at all."""
        others = (self.final_probability or 0.0, *self.class_probability.values())
        return max(self.synthetic_probability, *others) > 0

    @model_validator(mode="after")
    def _policy_fits(self) -> "MixingConfig":
        changes = self.final_probability is not None or self.class_probability
        if self.policy == "concat" and changes:
            raise ValueError(
                "mixing.final_probability and mixing.class_probability must be left out with "
                "mixing.policy concat, whose epochs have one length"
            )
        if self.samples_per_insert is not None and self.starvation == "wait":
            raise ValueError(
                "mixing.samples_per_insert must be null with mixing.starvation wait, which serves "
                f"every image in its turn, got {self.samples_per_insert:g}"
            )
        ratio, tolerance = self.samples_per_insert, self.sampling_tolerance
        if ratio is not None and tolerance is not None and tolerance < max(1, ratio):
            raise ValueError(
                "mixing.sampling_tolerance must be at least 1 and at least "
                f"mixing.samples_per_insert, got {tolerance:g} for {ratio:g}: both sides would "
                "block one another"
            )
        if self.policy == "concat" and self.synthetic_probability == 1:
            raise ValueError(
                "mixing.synthetic_probability must be below 1 with mixing.policy concat, got 1"
            )
        if self.imported is not None and self.starvation == "wait":
            raise ValueError(
                "mixing.imported must be null with mixing.starvation wait, which serves the plan "
                f"in its order, got {self.imported}"
            )
        waits = self.starvation == "wait" and self.policy != "global"
        if waits and self.max_times_sampled is not None:
            raise ValueError(
                "mixing.max_times_sampled must be null with mixing.starvation wait and "
                f"mixing.policy {self.policy}, got {self.max_times_sampled}"
            )
        return self
