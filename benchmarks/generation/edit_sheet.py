"""Draw edits by an InstructPix2Pix: a row for each digit or bird, a column for each prompt.

python -m benchmarks.generation.edit_sheet MODEL_DIRECTORY OUT.png [PROMPT_SCALE IMAGE_SCALE STEPS]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from online_aug.config.sections import GenerationConfig
from online_aug.data.embedded import digits_arrays
from online_aug.data.pocket_birds import HABITATS, SPECIES, random_scene, render
from online_aug.generation.engine import ImageGenerator
from online_aug.methods.diffusemix import DiffuseMixSettings
from online_aug.request import GenerationRequest
from online_aug.seeding import numpy_rng

SCALES = (1.5, 1.5, 20)


def main() -> None:
    """Edit the sources and save the sheet."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    given = [float(value) for value in sys.argv[3:6]]
    scales = (*given, *SCALES[len(given) :])
    editor = ImageGenerator.load(folder, None, GenerationConfig(slots=9), "float32", "cpu")
    rows = [row(editor, source, scales) for source in sources()]
    Image.fromarray(np.concatenate(rows, axis=0)).save(out)


def sources() -> list[np.ndarray]:
    """Return digits of the test split and new birds of the data set's species."""
    rng = numpy_rng("edits")
    digits = list(digits_arrays("test")[0][[0, 1, 2, 3]])
    species = rng.permutation(list(SPECIES))
    birds = [
        render(SPECIES[s], random_scene(rng, h))[0] for s, h in zip(species, HABITATS, strict=False)
    ]
    return digits + birds


def row(editor: ImageGenerator, source: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """Return a source and its edits, side by side."""
    config = DiffuseMixSettings(name="diffusemix")
    requests = [
        request(config.template.replace("{prompt}", prompt), number, scales)
        for number, prompt in enumerate(config.prompts)
    ]
    image = torch.from_numpy(source.copy()).permute(2, 0, 1)
    made = editor.generate(requests, image.expand(len(requests), -1, -1, -1))
    pixels = (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.concatenate([source, *pixels], axis=1)


def request(prompt: str, number: int, scales: tuple[float, ...]) -> GenerationRequest:
    """Return the request of one edit; only the fields that decide pixels matter here."""
    text_scale, image_scale, steps = scales
    return GenerationRequest(
        method="diffusemix",
        method_version=1,
        source_digest="",
        source_label=0,
        target_label=0,
        prompt=prompt,
        strength=1.0,
        guidance_scale=text_scale,
        image_guidance_scale=image_scale,
        num_inference_steps=int(steps),
        scheduler="euler_ancestral",
        resolution=64,
        variant=0,
        noise_seed=number,
        generator_fingerprint="",
    )


if __name__ == "__main__":
    main()
