"""What all requests of a recipe share, read from its configuration."""

from collections.abc import Sequence

from online_aug.config import Config
from online_aug.errors import UserError
from online_aug.fractals import FractalBank
from online_aug.method_settings import settings_of
from online_aug.methods import MethodContext
from online_aug.saliency.version import file_digest


def method_context(
    config: Config,
    prompts: tuple[str, ...],
    generator_fingerprint: str,
    fractals: FractalBank | None,
    class_sizes: Sequence[int],
) -> MethodContext:
    """What a configuration says to its method, without saliency maps.

    Args:
        config: All but what has to be looked up.
        prompts: Of the classes, by label.
        generator_fingerprint: Of what makes the images.
        fractals: DiffuseMix's pictures.
        class_sizes: Training images of each class.

    Raises:
        UserError: If the file of the judge's weights cannot be read.
    """
    made = config.generation
    return MethodContext(
        prompts=prompts,
        strengths=config.method.strength,
        target_weights=target_weights(class_sizes, config.method.target_balance),
        gamma=config.method.gamma,
        guidance_scale=made.guidance_scale,
        num_inference_steps=made.num_inference_steps,
        scheduler=made.scheduler,
        resolution=made.resolution,
        seed=made.seed,
        generator_fingerprint=generator_fingerprint,
        gate_version=gate_version(config),
        settings=settings_of(config, fractals),
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


def gate_version(config: Config) -> str | None:
    """Of what judges the images' classes and its rule; None where nothing does.

    Raises:
        UserError: If the file of the classifier's weights cannot be read.
    """
    gate = config.gate
    if gate.classifier is None:
        return None
    name, side = gate.name or config.classifier.name, gate.image_size or config.data.image_size
    try:
        digest = file_digest(gate.classifier)
    except OSError as error:
        raise UserError(
            f"gate.classifier must be a file of weights, cannot read {gate.classifier}: "
            f"{error.strerror}"
        ) from None
    return f"{name}-{side}-{digest}-{gate.min_probability!r}-{gate.top_k}"
