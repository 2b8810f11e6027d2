"""The run's gallery: some of the generated images beside what they were made from."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor

from cache import CacheError, Store
from online_aug.dataloader.frames import resize
from online_aug.dataloader.images import BadImageError
from online_aug.methods import METHODS
from online_aug.methods.contract import Picture
from online_aug.recipe import Recipe
from online_aug.recipe_images import SourceImages
from online_aug.records import GenerationRequest, Servable
from online_aug.reporting.gallery import GalleryRow, draw_gallery
from online_aug.seeding import numpy_rng

ROWS = 16


def draw_run_gallery(recipe: Recipe, plan: Sequence[Servable], store: Store, path: Path) -> None:
    """Draw up to `ROWS` images of the plan that are in the cache, spread over the strengths."""
    rows = gallery_rows(recipe, plan, store, ROWS)
    if rows:
        names = " and ".join(method.name for method in recipe.config.methods)
        draw_gallery(rows, path, title=f"{names} on {recipe.config.data.source}")


def gallery_rows(
    recipe: Recipe, plan: Sequence[Servable], store: Store, count: int
) -> list[GalleryRow]:
    """Stages, target, strength and soft label of some records, of each method as many."""
    keys = [request.key for request in plan]
    made = [r for r, there in zip(plan, store.contains(keys), strict=True) if there]
    drawn = [made[place] for place in numpy_rng("gallery").permutation(len(made))]
    chosen = _by_turns(drawn, recipe.methods)[:count]
    return [
        row
        for request in sorted(chosen, key=lambda request: request.strength)
        if (row := _row(recipe, store, request)) is not None
    ]


def _by_turns(requests: Sequence[Servable], methods: Iterable[str]) -> list[Servable]:
    parts = [[request for request in requests if request.method == name] for name in methods]
    turns = zip_longest(*parts)
    return [request for turn in turns for request in turn if request is not None]


def _row(recipe: Recipe, store: Store, request: Servable) -> GalleryRow | None:
    """One row, composed by chance; None where record or source cannot be read any more."""
    try:
        record = store.get(request.key)
        if record is None:
            return None
        pictures, label = _composed(recipe, request, record.image)
    except (CacheError, BadImageError):
        return None
    names = recipe.splits.train.class_names
    shares = {names[k]: float(label[k]) for k in label.argsort(descending=True) if label[k] > 0}
    target = names[request.target_label]
    if isinstance(request, GenerationRequest):
        target = recipe.instructions.get(request.prompt, target)
    return GalleryRow(
        pictures=pictures,
        source_name=names[request.source_label],
        target_name=target,
        strength=request.strength,
        soft_label=shares,
        method=request.method if len(recipe.methods) > 1 else None,
    )


def _composed(
    recipe: Recipe, request: Servable, generated: Picture
) -> tuple[Mapping[str, Picture], Float[Tensor, " k"]]:
    images = SourceImages(recipe.splits.train, recipe.sources)
    method, context = METHODS[request.method], recipe.contexts[request.method]
    rng, same = (numpy_rng("gallery", request.key.hex()) for _ in range(2))

    def source() -> Picture:
        assert request.source_digest is not None  # else nothing asks for it
        return images.by_digest(request.source_digest).permute(1, 2, 0).numpy()

    _, label = method.compose(source, generated, request, context, same)
    if not isinstance(request, GenerationRequest):
        known = {} if request.source_digest is None else {"source": source()}
        return known | {"generated": generated}, label

    def image_of(digest: str) -> UInt8[Tensor, "3 r r"]:
        return resize(images.by_digest(digest), request.resolution)

    context = recipe.context_for(request)
    return method.stages(source(), generated, request, context, image_of, rng), label
