"""The maps that an experiment's own generator makes: which model looks, for what, and their name.

Nothing here loads the model before it is to look.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jaxtyping import Int, UInt8
from torch import Tensor, device

from online_aug.diffusion.adapters import named_concepts
from online_aug.diffusion.compatibility import CPU_SLOTS, choose_attention, choose_slots
from online_aug.diffusion.directory import kind_of, unet_settings
from online_aug.diffusion.weights import digest_folder
from online_aug.errors import UserError
from online_aug.experiment.saliency_models import Look
from online_aug.settings import decided

if TYPE_CHECKING:
    from online_aug.experiment.experiment import Experiment
    from online_aug.generation.foreground import ForegroundFinder

_MAPS_VERSION = 1
"""Counts changes of the code after which maps are others."""
_OTHERS = "choose another saliency.method"


@dataclass(frozen=True)
class GeneratorMaps:
    """The foreground maps that the generator of an experiment makes itself."""

    experiment: "Experiment"

    @property
    def is_known(self) -> bool:
        """Whether the model that looks is there; a fine-tuned one has to be made first."""
        is_finetuned = self.experiment.config.saliency.finetuned
        return not is_finetuned or self.experiment.diffusion.is_ready

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each class, which says what the foreground is."""
        saliency, data = self.experiment.config.saliency, self.experiment.config.data
        class_names = self.experiment.splits.train.class_names
        if saliency.prompt is not None:
            return (saliency.prompt,) * len(class_names)
        if saliency.finetuned:
            return tuple(concept.prompt for concept in self.experiment.diffusion.concepts)
        if data.metaclass:
            return tuple(c.prompt for c in named_concepts([data.metaclass] * len(class_names), ""))
        return tuple(concept.prompt for concept in named_concepts(class_names, ""))

    @property
    def side(self) -> int:
        """Side of the square that the generator sees, px."""
        return decided(self.experiment.config.generation.resolution)

    @property
    def calls(self) -> int:
        """Calls of the network for an image, with its prompt and without."""
        saliency = self.experiment.config.saliency
        return 2 * len(saliency.timesteps) * saliency.draws

    @property
    def version(self) -> str:
        """Name of the maps; what decides them is in it.

        Raises:
            UserError: If the model cannot be found or read.
        """
        files, saliency = self.experiment.diffusion, self.experiment.config.saliency
        decides = [
            _MAPS_VERSION,
            files.model_digest,
            files.adaptation.digest(files.finetuned) if saliency.finetuned else None,
            digest_folder(files.vae) if files.vae else None,
            files.dtype,
            saliency.timesteps,
            saliency.draws,
            self.prompts,
        ]
        digest = hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest()
        return f"diffusion-{self.side}-{digest}"

    def check(self) -> None:
        """Refuse a generator that cannot tell the foreground.

        Raises:
            UserError: If it reads the source image beside the noisy one, always takes its guidance,
                or is to be fine-tuned and never will be.
        """
        files = self.experiment.diffusion
        if self.experiment.config.saliency.finetuned and files.finetuned is None:
            raise UserError(
                "saliency.finetuned must be false where nothing is fine-tuned, got true; see "
                "finetune.enabled"
            )
        if kind_of(files.model) == "instruct":
            raise UserError(
                f"saliency.method must be another than diffusion for {files.model}, an "
                f"InstructPix2Pix, whose prompts name edits and no objects; {_OTHERS}"
            )
        if unet_settings(files.model).get("time_cond_proj_dim"):
            raise UserError(
                f"saliency.method must be another than diffusion for {files.model}, a consistency "
                f"model, which cannot do without guidance by its prompt; {_OTHERS}"
            )

    def load(self) -> tuple[Look, int]:
        """Load the model onto its device; return what looks, and at how many images together.

        Raises:
            UserError: If model or adapters cannot be used.
        """
        finder = self._finder()

        def look(images: UInt8[Tensor, "b 3 s s"], labels: Int[Tensor, " b"]) -> Tensor:
            return finder(images, [self.prompts[int(label)] for label in labels])

        return look, finder.batch_size

    def _finder(self) -> "ForegroundFinder":
        from online_aug.diffusion.loading import load_adapters, load_img2img
        from online_aug.generation.foreground import ForegroundFinder, Glances

        files, config = self.experiment.diffusion, self.experiment.config
        pipeline = load_img2img(files.model, files.dtype, files.vae, files.unet)
        if config.saliency.finetuned and (adapters := files.adapters):
            load_adapters(pipeline, adapters)
        where = device(self.experiment.device)
        pipeline.to(where)
        choose_attention(config.generation.attention, pipeline, where)
        batch_size = CPU_SLOTS if where.type == "cpu" else choose_slots(config.generation, pipeline)
        glances = Glances(config.saliency.timesteps, config.saliency.draws)
        return ForegroundFinder(pipeline, glances, batch_size)
