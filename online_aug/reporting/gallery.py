"""The gallery of a run: synthetic images beside their sources, with strength and soft label."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from cache import CacheError, Store
from cache.contact_sheet import FAINT, INK, LINE, PAPER, font, png_file, scaled, shortened
from online_aug.data.images import BadImageError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import ComposedSamples, SourceImages
from online_aug.files import write_atomically
from online_aug.methods import Picture
from online_aug.planning import Numbered
from online_aug.planning.held import held_of
from online_aug.request import GenerationRequest, Servable
from online_aug.seeding import numpy_rng

SMALLEST_PX, LARGEST_PX = 96, 192
"""Smallest and largest side of an image; smaller ones grow by a whole factor, pixel by pixel."""

TRACK = "#eef0f4"
SOURCE_COLOUR, TARGET_COLOUR, OTHER_COLOUR = "#4c78a8", "#f28e2b", "#a5abb8"

MARGIN, GAP, ROW_GAP, CAPTION = 28, 28, 18, 24
TITLE_HEIGHT, HEAD_HEIGHT = 54, 34
STRENGTH_WIDTH, BAR_WIDTH, NUMBER_WIDTH = 110, 160, 48
NARROWEST_NAME, WIDEST_NAME = 90, 230
BAR_HEIGHT, BAR_PITCH, LABEL_BARS = 14, 25, 4


@dataclass(frozen=True)
class GalleryRow:
    """One synthetic image with its stages."""

    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    """The image at every stage by name, from the source to what the classifier sees."""
    source_name: str
    """The class of the source image."""
    target_name: str
    """The class, or the instruction, of the prompt."""
    strength: float | None
    """None if no generator made it."""
    soft_label: Mapping[str, float]
    """The mass of each class; classes without mass may be left out."""
    method: str | None = None
    """The method, if the run has several."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What the gate measured."""


def draw_gallery(rows: Sequence[GalleryRow], path: Path, *, title: str) -> None:
    """Draw a PNG with a row for each synthetic image: stages, target, strength, soft label.

    Small images are enlarged without smoothing, so that every pixel keeps its value.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one image, got none")
    pictures = [
        {name: scaled(picture, SMALLEST_PX, LARGEST_PX) for name, picture in row.pictures.items()}
        for row in rows
    ]
    cell = max(side for stages in pictures for shown in stages.values() for side in shown.size)
    columns = _columns(rows, cell)
    top = TITLE_HEIGHT + HEAD_HEIGHT
    height = top + len(rows) * (cell + CAPTION + ROW_GAP) + MARGIN
    sheet = Image.new("RGB", (columns.end + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_heads(draw, columns, title)
    for number, (row, stages) in enumerate(zip(rows, pictures, strict=True)):
        y = top + number * (cell + CAPTION + ROW_GAP)
        draw.line((MARGIN, y, columns.end, y), LINE)
        middle = y + (ROW_GAP + cell) // 2
        _draw_pictures(sheet, columns, middle, stages)
        below = next(iter(stages.values())).height // 2 + 5
        _draw_source_name(draw, columns, middle + below, row)
        _draw_words(draw, columns, middle, row)
    write_atomically(path, png_file(sheet))


@dataclass(frozen=True)
class _Columns:
    cell: int
    stages: tuple[str, ...]
    target_width: int
    name_width: int

    def stage(self, name: str) -> int:
        return MARGIN + self.stages.index(name) * (self.cell + 2 * GAP)

    @property
    def target(self) -> int:
        return MARGIN + len(self.stages) * (self.cell + 2 * GAP) - GAP

    @property
    def strength(self) -> int:
        return self.target + self.target_width + GAP

    @property
    def label(self) -> int:
        return self.strength + STRENGTH_WIDTH + GAP

    @property
    def end(self) -> int:
        return self.label + self.name_width + BAR_WIDTH + NUMBER_WIDTH


def _columns(rows: Sequence[GalleryRow], cell: int) -> _Columns:
    names = [name for row in rows for name, _ in _heaviest(row.soft_label)]
    longest = sorted(rows, key=lambda row: -len(row.pictures))  # its order is that of all
    return _Columns(
        cell=cell,
        stages=tuple(dict.fromkeys(name for row in longest for name in row.pictures)),
        target_width=_width([row.target_name for row in rows], 20),
        name_width=12 + _width(names, 15, narrowest=0),
    )


def _width(names: list[str], size: int, narrowest: int = NARROWEST_NAME) -> int:
    longest = max((font(size).getlength(name) for name in names), default=0)
    return min(max(round(longest) + 1, narrowest), WIDEST_NAME)


def _draw_heads(draw: ImageDraw.ImageDraw, columns: _Columns, title: str) -> None:
    draw.text((MARGIN, 18), shortened(title, 22, columns.end - MARGIN), INK, font(22))
    heads = [(name, columns.stage(name)) for name in columns.stages]
    heads += [("asked for", columns.target), ("strength", columns.strength)]
    heads += [("soft label", columns.label)]
    for name, x in heads:
        draw.text((x, TITLE_HEIGHT + 8), name, FAINT, font(15))


def _draw_pictures(
    sheet: Image.Image, columns: _Columns, middle: int, stages: Mapping[str, Image.Image]
) -> None:
    draw = ImageDraw.Draw(sheet)
    for name, picture in stages.items():
        x, above = columns.stage(name), middle - picture.height // 2
        sheet.paste(picture, (x, above))
        frame = (x - 1, above - 1, x + picture.width, above + picture.height)
        draw.rectangle(frame, outline=LINE)
    for name in list(stages)[1:]:
        start, tip = columns.stage(name) - 2 * GAP + 16, columns.stage(name) - 14
        draw.line((start, middle, tip - 6, middle), FAINT, 2)
        draw.polygon([(tip, middle), (tip - 8, middle - 5), (tip - 8, middle + 5)], FAINT)


def _draw_source_name(
    draw: ImageDraw.ImageDraw, columns: _Columns, y: int, row: GalleryRow
) -> None:
    is_same = row.source_name == row.target_name
    caption = shortened(row.source_name, 15, columns.cell + 2 * GAP)
    colour = TARGET_COLOUR if is_same else SOURCE_COLOUR
    draw.text((MARGIN, y), caption, colour, font(15))


def _draw_words(draw: ImageDraw.ImageDraw, columns: _Columns, middle: int, row: GalleryRow) -> None:
    target = shortened(row.target_name, 20, columns.target_width)
    draw.text((columns.target, middle), target, TARGET_COLOUR, font(20), anchor="lm")
    by = shortened(row.method or "", 15, columns.target_width)
    draw.text((columns.target, middle + 24), by, FAINT, font(15), anchor="lm")
    if row.strength is not None:
        _draw_strength(draw, columns.strength, middle, row.strength)
    colours = {row.source_name: SOURCE_COLOUR, row.target_name: TARGET_COLOUR}
    bars = _heaviest(row.soft_label)
    for number, (name, mass) in enumerate(bars):
        bar_y = middle + round((number - (len(bars) - 1) / 2) * BAR_PITCH)
        _draw_bar(draw, columns, bar_y, _Bar(name, mass, colours.get(name, OTHER_COLOUR)))


def _draw_strength(draw: ImageDraw.ImageDraw, x: int, middle: int, strength: float) -> None:
    draw.text((x, middle - 6), f"{strength:.2f}", INK, font(20), anchor="lm")
    gauge = (x, middle + 10, x + STRENGTH_WIDTH, middle + 15)
    draw.rounded_rectangle(gauge, 2, TRACK)
    draw.rounded_rectangle((*gauge[:2], x + round(STRENGTH_WIDTH * strength), gauge[3]), 2, INK)


def _heaviest(soft_label: Mapping[str, float]) -> list[tuple[str, float]]:
    ordered = sorted(soft_label.items(), key=lambda entry: -entry[1])
    bars = [(name, mass) for name, mass in ordered if mass >= 0.005]
    if len(bars) <= LABEL_BARS:
        return bars
    kept = bars[: LABEL_BARS - 1]
    return [*kept, (f"{len(bars) - len(kept)} others", sum(mass for _, mass in bars[len(kept) :]))]


@dataclass(frozen=True)
class _Bar:
    name: str
    mass: float
    colour: str


def _draw_bar(draw: ImageDraw.ImageDraw, columns: _Columns, y: int, bar: _Bar) -> None:
    name = shortened(bar.name, 15, columns.name_width - 12)
    draw.text((columns.label, y), name, INK, font(15), anchor="lm")
    left, above, below = (
        columns.label + columns.name_width,
        y - BAR_HEIGHT // 2,
        y + BAR_HEIGHT // 2,
    )
    draw.rounded_rectangle((left, above, left + BAR_WIDTH, below), 3, TRACK)
    filled = max(2, round(BAR_WIDTH * min(bar.mass, 1.0)))
    draw.rounded_rectangle((left, above, left + filled, below), 3, bar.colour)
    draw.text((columns.end, y), f"{bar.mass:.2f}", INK, font(15), anchor="rm")


ROWS = 16
_LOOKED_AT = 4096
"""Cached images among which as many of each method are looked for."""


def draw_run_gallery(
    experiment: Experiment, plan: Numbered[Servable], store: Store, path: Path
) -> None:
    """Draw up to `ROWS` images, cached ones of the plan and composed; write nothing without any."""
    composed = composed_rows(experiment, ROWS // 2 if len(plan) else ROWS)
    if rows := [*gallery_rows(experiment, plan, store, ROWS - len(composed)), *composed]:
        names = " and ".join(experiment.methods)
        draw_gallery(rows, path, title=f"{names} on {experiment.config.data.source}")


def gallery_rows(
    experiment: Experiment, plan: Numbered[Servable], store: Store, count: int
) -> list[GalleryRow]:
    """Choose cached images of the plan, equally many of each method, and order them by strength."""
    numbers = np.unique(held_of(store, plan).numbers)
    order = numpy_rng("gallery").permutation(len(numbers))[:_LOOKED_AT]
    drawn = [plan[int(number)] for number in numbers[order]]
    chosen = _by_turns(drawn, experiment.methods)[:count]
    return [
        row
        for request in sorted(chosen, key=lambda request: request.strength)
        if (row := cached_row(experiment, store, request)) is not None
    ]


def composed_rows(experiment: Experiment, count: int) -> list[GalleryRow]:
    """Compose samples of training images, as the loader does; none if the run serves none."""
    if not experiment.config.is_composed:
        return []
    samples = ComposedSamples.of(experiment)
    order = numpy_rng("gallery", "composed").permutation(len(samples.sources))
    rows = (_composed_row(experiment, samples, int(index)) for index in order)
    return list(islice((row for row in rows if row is not None), count))


def _composed_row(
    experiment: Experiment, samples: ComposedSamples, index: int
) -> GalleryRow | None:
    rng, same = (numpy_rng("gallery", "compose", index) for _ in range(2))
    part, request = samples.plan(index, numpy_rng("gallery", "plan", index))
    if part.method.refusal(request, part.context):
        return None
    try:
        source = samples.read(request.source_digest)
        mixed = samples.prepared(part, request, source)
        image_of = samples.reader(source.shape[:2])
        pictures = part.method.stages(source, mixed, request, part.context, image_of, rng)
    except BadImageError:
        return None
    _, label = part.method.compose(lambda: source, mixed, request, part.context, same)
    return _as_row(experiment, request, pictures, label, is_generated=False)


def _by_turns(requests: Sequence[Servable], methods: Iterable[str]) -> list[Servable]:
    parts = [[request for request in requests if request.method == name] for name in methods]
    turns = zip_longest(*parts)
    return [request for turn in turns for request in turn if request is not None]


def cached_row(experiment: Experiment, store: Store, request: Servable) -> GalleryRow | None:
    """Compose an image of the cache as when it is served; None if it cannot be read."""
    try:
        record = store.get(request.key)
        if record is None:
            return None
        pictures, label = _composed(experiment, request, record.image)
    except (CacheError, BadImageError):
        return None
    return replace(_as_row(experiment, request, pictures, label), scores=record.scores)


def _as_row(
    experiment: Experiment,
    request: Servable,
    pictures: Mapping[str, Picture],
    label: Float[np.ndarray, " k"],
    *,
    is_generated: bool = True,
) -> GalleryRow:
    names = experiment.splits.train.class_names
    order = np.argsort(-label, kind="stable")
    shares = {names[k]: float(label[k]) for k in order if label[k] > 0}
    target = names[request.target_label]
    if isinstance(request, GenerationRequest):
        target = experiment.methods[request.method].caption(request) or target
    return GalleryRow(
        pictures=pictures,
        source_name=names[request.source_label],
        target_name=target,
        strength=request.strength if is_generated else None,
        soft_label=shares,
        method=request.method if len(experiment.methods) > 1 else None,
    )


def _composed(
    experiment: Experiment, request: Servable, generated: Picture
) -> tuple[Mapping[str, Picture], Float[np.ndarray, " k"]]:
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    part = experiment.parts[request.method]
    rng, same = (numpy_rng("gallery", request.key.hex()) for _ in range(2))

    def source() -> Picture:
        assert request.source_digest is not None  # else nothing asks for it
        return images.by_digest(request.source_digest).permute(1, 2, 0).numpy()

    _, label = part.method.compose(source, generated, request, part.context, same)
    if not isinstance(request, GenerationRequest):
        known = {} if request.source_digest is None else {"source": source()}
        return known | {"generated": generated}, label

    def image_of(digest: str) -> Picture:
        square = images.square(digest, request.resolution, request.source_filter)
        return square.permute(1, 2, 0).numpy()

    context = experiment.context_for(request)
    return part.method.stages(source(), generated, request, context, image_of, rng), label
