"""The context that all requests of an experiment share, and whether its methods can share a run."""

from collections.abc import Mapping, Sequence

from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.generation.gate import gate_version
from online_aug.methods import Method, MethodContext


def shared_context(
    config: Config,
    *,
    prompts: tuple[str, ...],
    class_sizes: tuple[int, ...],
    generator_fingerprint: str,
    digests: Sequence[str],
) -> MethodContext:
    """Return the context of all methods, without saliency maps and a method's own resources.

    Args:
        config: The configuration.
        prompts: Prompt of each class, by label.
        class_sizes: Training images of each class.
        generator_fingerprint: Digest of what makes the images.
        digests: Digests of the training images, each once.

    Raises:
        UserError: If the file of the judge's weights cannot be read.
    """
    made = config.generation
    return MethodContext(
        prompts=prompts,
        class_sizes=class_sizes,
        guidance_scale=made.guidance_scale,
        image_guidance_scale=made.image_guidance_scale,
        num_inference_steps=made.num_inference_steps,
        scheduler=made.scheduler,
        resolution=made.resolution,
        seed=made.seed,
        generator_fingerprint=generator_fingerprint,
        gate_version=gate_version(config, digests),
    )


def check_methods(
    config: Config, methods: Mapping[str, Method], *, follows_classifier: bool
) -> None:
    """Refuse methods that cannot share one run.

    Args:
        config: The configuration.
        methods: Its methods by name.
        follows_classifier: Whether plans replace one another while the classifier is trained.

    Raises:
        UserError: If they need models of two kinds, or one a fine-tuned model and another one as
            it is, or the foregrounds follow the classifier in training.
    """
    if follows_classifier and len(methods) > 1:
        raise UserError(
            "saliency.teacher must be a file of weights, or saliency.method spectral_residual, "
            "if method lists several, got classifier"
        )
    (first_name, first), *others = methods.items()
    for name, method in others:
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
