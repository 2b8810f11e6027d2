"""The timm classifier: built, loaded with weights, and checked before a run.

timm takes seconds to import. A generation process that judges nothing never does, so the functions
that need timm import it.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from cache.text import nearest_hint
from online_aug.classifier.replaced_parts import replace_parts
from online_aug.classifier.weights import check_file, fit, misfit, read_weights
from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError, first_line
from online_aug.seeding import torch_global_state

REFUSALS = (RuntimeError, TypeError, ValueError, AssertionError, ZeroDivisionError)
"""Errors that networks raise for settings or images they were not made for."""
_HUB_TIMEOUT_S = 10
OWNED_OPTIONS = {
    "num_classes": "it follows from the data",
    "in_chans": "images have three channels",
    "img_size": "set data.image_size",
    "drop_rate": "set classifier.drop_rate",
    "pretrained": "set classifier.pretrained",
    "checkpoint_path": "set classifier.checkpoint",
    "pretrained_cfg": "set classifier.mean and classifier.std",
    "pretrained_cfg_overlay": "set classifier.mean and classifier.std",
    "features_only": "a classifier has a head",
}
"""Arguments of timm's models that something else decides, and what."""


def build_classifier(
    config: ClassifierConfig,
    num_classes: int,
    *,
    image_size: int | None = None,
    seed: int = 0,
    key: str = "classifier.checkpoint",
    needs_head: bool = False,
) -> nn.Module:
    """Build a timm classifier on the CPU, with a new head or the weights the configuration names.

    Args:
        config: Name, weights and dropout.
        num_classes: Outputs of the head.
        image_size: Side of the images it will see, px; only used by models that are built for one
            size (most vision transformers).
        seed: Seed of the initial weights; PyTorch's global state is left alone.
        key: Configuration key of `config.checkpoint`, for error messages.
        needs_head: Whether a file of weights without a head for these classes is refused; otherwise
            the head is new.

    Raises:
        UserError: If timm does not know the name, or the weights are missing or do not fit.
    """
    check_name(config.name)
    with torch_global_state(seed):
        classifier = _create(config, num_classes, image_size)
    load_checkpoint(classifier, config, key, needs_head=needs_head)
    return classifier


def input_statistics(classifier: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel means and deviations that a model expects, for values in [0, 1].

    They are timm's for its name, or `classifier.mean` and `classifier.std`.
    """
    from timm.data import resolve_model_data_config

    found = resolve_model_data_config(classifier)
    return tuple(found["mean"]), tuple(found["std"])


def prepare_training(classifier: nn.Module, config: ClassifierConfig) -> None:
    """Put the classifier in training mode, or with `classifier.head_only` only its head.

    Raises:
        UserError: If only the head is to be trained and timm does not know the model's head.
    """
    classifier.train()
    if not config.head_only:
        return
    heads = _heads(classifier)
    if not heads:
        raise UserError(f"classifier.head_only must be false for {config.name}, which has no head")
    classifier.requires_grad_(False).eval()
    classifier.training = True  # the mode that dropout before the head follows
    for head in heads:
        head.requires_grad_(True).train()


def _heads(classifier: Any) -> list[nn.Module]:
    found = classifier.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    return [head for head in heads if any(True for _ in head.parameters())]


def check_classifier(config: ClassifierConfig) -> None:
    """Raise if a classifier obviously cannot be built, without building it.

    Raises:
        UserError: If timm does not know the name, the file of weights is missing, or an option is
            decided by another key.
    """
    check_name(config.name)
    for name in config.options:
        if name in OWNED_OPTIONS:
            raise UserError(f"classifier.options must not set {name}: {OWNED_OPTIONS[name]}")
    check_file(config.checkpoint)


def check_pretrained(config: ClassifierConfig, num_classes: int, image_size: int) -> None:
    """Raise if `classifier.pretrained` asks for weights that cannot be had; fetch them otherwise.

    Raises:
        UserError: If timm has none for the name, or they are neither in the local cache nor to be
            downloaded.
    """
    if config.pretrained and config.checkpoint is None:
        _check_reachable(config.name)
        build_classifier(config, num_classes, image_size=image_size)


def _check_reachable(name: str) -> None:
    # Asked once: the download itself tries for over a minute when there is no network.
    import timm
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    repository = None if ":" in name else timm.get_pretrained_cfg(name).hf_hub_id
    if repository is None or isinstance(
        try_to_load_from_cache(repository, "model.safetensors"), str
    ):
        return
    try:
        HfApi().model_info(repository, timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError:
        return  # the download says what is wrong
    except Exception as error:  # whatever the HTTP client raises without a connection
        raise _no_weights(name, error) from None


def check_precision(config: ClassifierConfig, devices: Sequence[str]) -> None:
    """Raise if a training device does not support `classifier.precision`.

    Raises:
        UserError: If it does not; names the formats that it supports.
    """
    on_cpu = any(device.startswith("cpu") for device in devices)
    if config.precision == "float16" and on_cpu:
        raise UserError(
            "classifier.precision must be float32 or bfloat16 on a CPU, which does not train in "
            "float16, got float16"
        )
    if config.precision == "bfloat16" and not on_cpu and not torch.cuda.is_bf16_supported():
        raise UserError(
            "classifier.precision must be float32 or float16 on these GPUs, which do not compute "
            "in bfloat16, got bfloat16"
        )


def check_name(name: str, key: str = "classifier.name") -> None:
    """Raise if timm does not know a model.

    Args:
        name: Name of the model, with or without a tag of weights.
        key: Configuration key of the name, for the error message.

    Raises:
        UserError: If timm does not know it; names the nearest models.
    """
    import timm

    architecture = name.split(".")[0]
    if ":" in name or timm.is_model(architecture):
        return
    hint = nearest_hint(architecture, timm.list_models())
    raise UserError(f"{key} must be a timm model, got {name!r}{hint}")


def create(config: ClassifierConfig, num_classes: int, image_size: int | None) -> nn.Module:
    """Create the network, for images of a size if it needs to know it; raise as timm does."""
    import timm

    # A checkpoint replaces downloaded weights.
    pretrained = config.pretrained and config.checkpoint is None
    classifier: nn.Module = timm.create_model(
        config.name,
        pretrained=pretrained,
        num_classes=num_classes,
        drop_rate=config.drop_rate,
        **_size_option(config.name, image_size),
        **config.options,
    )
    return replace_parts(classifier, config)


def check_buildable(config: ClassifierConfig, num_classes: int) -> None:
    """Raise if timm cannot build a network with these settings, whatever the size of its images.

    Raises:
        UserError: If it cannot.
    """
    bare = config.model_copy(update={"pretrained": False, "checkpoint": None})
    with torch.device("meta"):
        _create(bare, num_classes, None)


def _no_weights(name: str, error: Exception) -> UserError:
    return UserError(
        f"classifier.pretrained must be false where the weights of {name} cannot be downloaded "
        f"({first_line(error)}): give a file of weights as classifier.checkpoint"
    )


def _create(config: ClassifierConfig, num_classes: int, image_size: int | None) -> nn.Module:
    try:
        return _with_statistics(create(config, num_classes, image_size), config)
    except OSError as error:
        raise _no_weights(config.name, error) from None
    except UserError:
        raise
    except REFUSALS as error:
        key, options = "classifier.name", ""
        if config.options:
            key, options = "classifier.name and classifier.options", f" with {config.options}"
        raise UserError(
            f"{key} must be a timm model that can be built with these settings, got "
            f"{config.name!r}{options}: {first_line(error)}"
        ) from None


def _with_statistics(classifier: Any, config: ClassifierConfig) -> nn.Module:
    given = {"mean": config.mean, "std": config.std}
    changes = {name: value for name, value in given.items() if value is not None}
    classifier.pretrained_cfg = {**classifier.pretrained_cfg, **changes}
    return cast(nn.Module, classifier)


def sees_one_size(name: str) -> bool:
    """Return whether a model only takes images of the size it was built for."""
    import timm

    cfg = None if ":" in name else timm.get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.fixed_input_size)


def _size_option(name: str, image_size: int | None) -> dict[str, int]:
    is_fixed = image_size is not None and sees_one_size(name)
    return {"img_size": image_size} if is_fixed and image_size is not None else {}


def load_checkpoint(
    classifier: nn.Module,
    config: ClassifierConfig,
    key: str = "classifier.checkpoint",
    *,
    needs_head: bool = False,
) -> list[str]:
    """Load the weights that `config.checkpoint` names, if any, without a head for other classes.

    Args:
        classifier: Model of `config.name`.
        config: Names the file.
        key: Configuration key of the file, for messages.
        needs_head: Whether a file without a fitting head is refused.

    Returns:
        Lines that say what was not taken as it is.

    Raises:
        UserError: If the file is missing, cannot be read or does not fit.
    """
    path = config.checkpoint
    if path is None:
        return []
    weights = read_weights(path, key)
    fitted = fit(weights, classifier)
    classes = getattr(classifier, "num_classes", "?")
    if fitted is None or (needs_head and not fitted.has_head):
        raise UserError(
            f"{key} must hold the weights of {config.name} with {classes} classes, {path} "
            f"{misfit(weights, classifier)}"
        )
    classifier.load_state_dict(fitted.weights, strict=fitted.has_head)
    notes = []
    if fitted.is_by_order:
        notes.append(
            f"{key}: the names in {path} are not those of {config.name}; its tensors were taken in "
            "their order, in which all shapes agree"
        )
    if not fitted.has_head:
        notes.append(
            f"{key}: {path} has no head for {classes} classes; the head starts with new weights"
        )
    return notes
