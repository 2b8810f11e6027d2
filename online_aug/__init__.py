"""Training-time diffusion augmentation for image classifiers.

The public names come with their first use, so that `import online_aug` is fast and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online_aug.config import Config
    from online_aug.config.loading import load_config
    from online_aug.experiment.experiment import Experiment
    from online_aug.loader.loader import OnlineAugLoader
    from online_aug.methods import METHODS, Method
    from online_aug.own_loop.open_loader import open_loader
    from online_aug.request import GenerationRequest

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Config",
    "Experiment",
    "GenerationRequest",
    "Method",
    "OnlineAugLoader",
    "__version__",
    "load_config",
    "open_loader",
]

_MODULES = {
    "METHODS": "online_aug.methods",
    "Config": "online_aug.config",
    "Experiment": "online_aug.experiment.experiment",
    "GenerationRequest": "online_aug.request",
    "Method": "online_aug.methods",
    "OnlineAugLoader": "online_aug.loader.loader",
    "load_config": "online_aug.config.loading",
    "open_loader": "online_aug.own_loop.open_loader",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
