"""What a method needs beside the common context, made from the configuration.

What all requests of an experiment share, read from its configuration.
"""

from collections.abc import Sequence

from online_aug.config import Config
from online_aug.config.methods import MethodConfig
from online_aug.errors import UserError
from online_aug.generation.gate import gate_version
from online_aug.methods import METHODS, DiffuseMixSettings, MethodContext, SgdMixSettings
from online_aug.methods.fractals import FractalBank


def settings_of(
    method: MethodConfig, config: Config, fractals: FractalBank | None
) -> DiffuseMixSettings | SgdMixSettings | None:
    """The settings of a configured method; None for one that needs no more than all have.

    Args:
        method: One of the run's.
        config: Of the run.
        fractals: What DiffuseMix blends in; None where the run has no such method.
    """
    if method.name == "sgd_mix":
        return _sgd_mix(method)
    if method.name != "diffusemix":
        return None
    assert fractals is not None  # the experiment has them where this method is
    return _diffusemix(method, config, fractals)


def instructions_of(method: MethodConfig) -> dict[str, str]:
    """DiffuseMix's prompts: what the model reads, and the configured word for it."""
    if method.name != "diffusemix":
        return {}
    return {method.template.replace("{prompt}", prompt): prompt for prompt in method.prompts}


def _diffusemix(method: MethodConfig, config: Config, fractals: FractalBank) -> DiffuseMixSettings:
    return DiffuseMixSettings(
        instructions=tuple(instructions_of(method)),
        takes_all=method.prompt_choice == "all",
        image_guidance_scale=config.generation.image_guidance_scale,
        masks=method.masks,
        seam=method.seam,
        fractal_weight=method.fractal_weight,
        fractals=fractals,
    )


def _sgd_mix(method: MethodConfig) -> SgdMixSettings:
    return SgdMixSettings(
        candidates=method.candidates,
        max_union_share=method.max_union_share,
        min_source_share=method.min_source_share,
        max_draws=method.max_draws,
        keeps_foreground=method.keeps_foreground,
    )


def method_contexts(
    config: Config,
    prompts: tuple[str, ...],
    generator_fingerprint: str,
    fractals: FractalBank | None,
    class_sizes: Sequence[int],
    digests: Sequence[str],
) -> dict[str, MethodContext]:
    """What a configuration says to each of its methods, by name, without saliency maps.

    Args:
        config: All but what has to be looked up.
        prompts: Of the classes, by label.
        generator_fingerprint: Of what makes the images.
        fractals: DiffuseMix's pictures.
        class_sizes: Training images of each class.
        digests: Of the training images, each once.

    Raises:
        UserError: If the file of the judge's weights cannot be read.
    """
    made = config.generation
    judge = gate_version(config, digests)
    return {
        method.name: MethodContext(
            prompts=prompts,
            strengths=method.strength,
            target_weights=target_weights(class_sizes, method.target_balance),
            gamma=method.gamma,
            guidance_scale=made.guidance_scale,
            num_inference_steps=made.num_inference_steps,
            scheduler=made.scheduler,
            resolution=made.resolution,
            seed=made.seed,
            generator_fingerprint=generator_fingerprint,
            gate_version=judge,
            settings=settings_of(method, config, fractals),
        )
        for method in config.methods
    }


def check_methods(config: Config, *, follows_classifier: bool) -> None:
    """Refuse methods that cannot share one run.

    Args:
        config: Of the run.
        follows_classifier: Whether plans replace one another while the classifier is trained.

    Raises:
        UserError: If they need models of two kinds, or one a fine-tuned model and another one as
            it is, or the classifier being trained is to say where foregrounds are.
    """
    if follows_classifier and len(config.methods) > 1:
        raise UserError(
            "saliency.teacher must be a file of weights, or saliency.method spectral_residual, "
            "where method lists several, got classifier"
        )
    methods = [(method.name, METHODS[method.name]) for method in config.methods]
    first_name, first = methods[0]
    for name, method in methods[1:]:
        if method.pipeline != first.pipeline:
            raise UserError(
                "method must list methods for one kind of model, got "
                f"{first_name} ({first.pipeline}) and {name} ({method.pipeline})"
            )
        if config.finetune.enabled and method.uses_finetuning != first.uses_finetuning:
            learned, plain = (first_name, name) if first.uses_finetuning else (name, first_name)
            raise UserError(
                "method must list methods for one model, got "
                f"{learned}, which fine-tunes it, and {plain}, which takes it as it is; "
                "finetune.enabled=false takes it so for both"
            )


def target_weights(class_sizes: Sequence[int], balance: float) -> tuple[float, ...] | None:
    """Chance of each class as target, by 1 / (n + 1)^balance; None where all are drawn alike.

    Example:
        >>> target_weights([2, 4], 1.0)
        (0.625, 0.375)
    """
    if not balance:
        return None
    shares = [(size + 1) ** -balance for size in class_sizes]
    return tuple(share / sum(shares) for share in shares)
