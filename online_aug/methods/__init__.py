"""What to make: one file a method, each with `plan`, `prepare` and `compose`."""

from online_aug.methods.contract import Method, MethodContext, Source
from online_aug.methods.diff_mix import DiffMix
from online_aug.methods.diffusemix import DiffuseMix, DiffuseMixSettings
from online_aug.methods.planning import plan_requests
from online_aug.methods.sgd_mix import SgdMix, SgdMixSettings

METHODS: dict[str, Method] = {
    "diff_mix": DiffMix("diff_mix", is_between_classes=True),
    "diff_aug": DiffMix("diff_aug", is_between_classes=False),
    "diffusemix": DiffuseMix(),
    "sgd_mix": SgdMix(),
}

__all__ = [
    "METHODS",
    "DiffMix",
    "DiffuseMix",
    "DiffuseMixSettings",
    "Method",
    "MethodContext",
    "SgdMix",
    "SgdMixSettings",
    "Source",
    "plan_requests",
]
