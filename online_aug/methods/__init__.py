"""What to make: one file a method, each with `plan`, `prepare` and `compose`."""

from online_aug.methods.base import Method, MethodContext, Part, Source, plan_requests
from online_aug.methods.diff_mix import DiffMix
from online_aug.methods.diffusemix import DiffuseMix, DiffuseMixSettings
from online_aug.methods.sgd_mix import SgdMix, SgdMixSettings

METHODS: dict[str, Method] = {
    "diff_mix": DiffMix("diff_mix"),
    "diff_aug": DiffMix("diff_aug", targets="own"),
    "diff_gen": DiffMix("diff_gen", targets="own", starts_from="noise"),
    "real_guidance": DiffMix("real_guidance", targets="own", uses_finetuning=False),
    "real_mix": DiffMix("real_mix", uses_finetuning=False),
    "da_fusion": DiffMix("da_fusion", targets="own"),
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
    "Part",
    "SgdMix",
    "SgdMixSettings",
    "Source",
    "plan_requests",
]
