"""Models that segment, from transformers or an ONNX file: where they see an object in an image.

What means foreground: of a semantic segmentation with several classes everything but class 0, which
has to be the background; of one class, and of an ONNX file, that class itself; of mask generation
the best mask of the object at the image's centre.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from online_aug.documents import read_object
from online_aug.saliency.maps import file_digest

SIDE_PX = 64
"""Side of the maps; values are averaged over the area of a cell."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_USUAL_PX = 320
"""Side for an ONNX file that takes any, as U2-Net was trained."""
_BACKGROUNDS = {"background", "__background__", "bg", "label_0", "0", "none"}
_OWN = {"local_files_only": True, "trust_remote_code": False}
Call = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b 64 64"]]


class Segmenter(NamedTuple):
    """A model that is ready to look at images."""

    call: Call
    side: int
    """Side of the square that it sees, px."""


def load_segmenter(path: Path, device: str, side: int | None = None) -> Segmenter:
    """Load the model in a directory of transformers, or in an ONNX file.

    Args:
        path: Directory or file.
        device: Where it runs; an ONNX file always runs on the CPU.
        side: Side of the square that it sees, px; None is what it was made for.

    Raises:
        ValueError: If it is a model for something else, or does not take that side; any other
            exception of the libraries if it cannot be read at all.
    """
    if path.is_dir():
        return _from_transformers(path, device, side)
    return _from_onnx(path, side)


def segmenter_digest(path: Path) -> str:
    """Return the digest of all files of a model that decide what it sees."""
    if path.is_file():
        return file_digest(path)
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))
    return "-".join(file_digest(file)[:16] for file in files)


def _from_transformers(folder: Path, device: str, side: int | None) -> Segmenter:
    if not (folder / "config.json").is_file():
        raise ValueError("it has no config.json")
    settings = read_object(folder / "config.json")
    if "auto_map" in settings:
        raise ValueError("its code lies in its own repository, which is not run")
    auto, is_prompted = _auto_class(settings)
    model, found = auto.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **_OWN
    )
    if found["missing_keys"]:
        raise ValueError(f"{len(found['missing_keys'])} of its weights are missing")
    model = model.eval().requires_grad_(False).to(device)
    prepare = _preparation(folder / "preprocessor_config.json")
    own = _own_side(folder / "preprocessor_config.json", model.config)
    if is_prompted and side not in (None, own):
        raise ValueError(f"it takes images of {own} px alone, saliency.image_size is {side}")
    look = _at_centre if is_prompted else _semantic

    @torch.inference_mode()
    def call(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 64 64"]:
        return _small(look(model, prepare(images.to(device))))

    return Segmenter(call, side or own)


def _auto_class(settings: Mapping[str, Any]) -> tuple[Any, bool]:
    import transformers
    from transformers.models.auto import modeling_auto as known

    (name, *_) = settings.get("architectures") or ["a model of no named class"]
    if name in known.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values():
        first = str((settings.get("id2label") or {}).get("0", "background"))
        if len(settings.get("id2label") or {}) > 1 and first.lower() not in _BACKGROUNDS:
            raise ValueError(f"its class 0 must be the background, and is {first!r}")
        return transformers.AutoModelForSemanticSegmentation, False
    if name in known.MODEL_FOR_MASK_GENERATION_MAPPING_NAMES.values():
        return transformers.AutoModelForMaskGeneration, True
    raise ValueError(f"it is {name}, for neither semantic segmentation nor mask generation")


def _preparation(file: Path) -> Callable[[Tensor], Tensor]:
    settings = read_object(file) if file.is_file() else {}
    mean, std = settings.get("image_mean") or _MEAN, settings.get("image_std") or _STD
    if settings.get("do_normalize", True) is False:
        mean, std = (0.0,), (1.0,)
    centre, width = (torch.tensor(values, dtype=torch.float32) for values in (mean, std))

    def prepare(images: Tensor) -> Tensor:
        scaled = images.float() / 255
        return (scaled - centre.view(-1, 1, 1).to(scaled)) / width.view(-1, 1, 1).to(scaled)

    return prepare


def _own_side(file: Path, config: Any) -> int:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if size is None and file.is_file():
        size = read_object(file).get("size")
    if isinstance(size, Mapping):
        size = next(iter(size.values()), None)
    if isinstance(size, list | tuple):
        size = size[0]
    return size if isinstance(size, int) else 512


def _semantic(model: Any, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b h w"]:
    logits: Tensor = model(pixel_values=pixels).logits.float()
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid()
    return 1 - logits.softmax(1)[:, 0]


def _at_centre(model: Any, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b h w"]:
    count, centre = len(pixels), pixels.shape[-1] / 2
    points = torch.full((count, 1, 1, 2), centre, device=pixels.device)
    labels = torch.ones((count, 1, 1), dtype=torch.int64, device=pixels.device)
    found = model(pixel_values=pixels, input_points=points, input_labels=labels)
    masks, scores = found.pred_masks[:, 0].float(), found.iou_scores[:, 0]
    best: Tensor = masks[torch.arange(count, device=masks.device), scores.argmax(1)]
    return best.sigmoid()


def _small(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b 64 64"]:
    return F.interpolate(maps[:, None], (SIDE_PX, SIDE_PX), mode="area")[:, 0].clamp(0, 1)


def _from_onnx(file: Path, side: int | None) -> Segmenter:
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("ONNX files need onnxruntime: pip install online-aug[segmenter]") from None

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it says is in the exception too
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        raise ValueError(f"it must have one input, has {len(inputs)}")
    (given,), shape, made = inputs, list(inputs[0].shape), list(outputs[0].shape)
    if len(shape) != 4 or shape[1] != 3 or given.type != "tensor(float)":
        raise ValueError(f"its input must be b x 3 x s x s of floats, is {json.dumps(shape)}")
    if len(made) != 4 or made[1] != 1:
        raise ValueError(f"its first output must be b x 1 x s x s, is {json.dumps(made)}")
    own = shape[2] if isinstance(shape[2], int) else None
    if None not in (own, side) and own != side:
        raise ValueError(f"it takes images of {own} px alone, saliency.image_size is {side}")

    def run(pixels: Float[np.ndarray, "b 3 s s"]) -> Float[np.ndarray, "b h w"]:
        (found,) = session.run([outputs[0].name], {given.name: pixels})
        return np.asarray(found, np.float32)[:, 0]

    def call(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 64 64"]:
        pixels = _as_u2net(images).numpy()
        parts = np.split(pixels, len(pixels)) if isinstance(shape[0], int) else [pixels]
        maps = torch.from_numpy(np.concatenate([run(part) for part in parts]))
        is_logit = ((maps < 0) | (maps > 1)).any(2).any(1)
        return _small(torch.where(is_logit[:, None, None], maps.sigmoid(), maps))

    return Segmenter(call, own or side or _USUAL_PX)


def _as_u2net(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
    """Scale by the brightest value of the image, then normalise, as U2-Net was trained."""
    values = images.float()
    brightest = values.amax((1, 2, 3), keepdim=True).clamp(min=1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (_MEAN, _STD))
    return (values / brightest - mean) / std
