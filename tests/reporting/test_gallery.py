from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from online_aug.reporting.gallery import GalleryRow, draw_gallery


def picture(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


ROW = GalleryRow(
    pictures={
        "source": picture(8, 8, (10, 200, 30)),
        "generated": picture(8, 8, (200, 10, 190)),
    },
    source_name="robin",
    target_name="wren",
    strength=0.7,
    soft_label={"robin": 0.25, "wren": 0.75},
)


def drawn(rows: list[GalleryRow], folder: Path) -> np.ndarray:
    draw_gallery(rows, folder / "gallery.png", title="diff_mix")
    with Image.open(folder / "gallery.png") as sheet:
        return np.asarray(sheet.convert("RGB"))


def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(axis=2).sum())


def test_tiny_images_are_shown_at_96_px_with_their_own_colours(tmp_path: Path) -> None:
    sheet = drawn([ROW], tmp_path)
    assert count(sheet, (10, 200, 30)) == count(sheet, (200, 10, 190)) == 96 * 96


def test_pixels_of_a_tiny_image_are_enlarged_without_smoothing(tmp_path: Path) -> None:
    source = picture(8, 8, (0, 0, 255))
    source[::2] = (255, 0, 255)
    sheet = drawn([replace(ROW, pictures={"source": source})], tmp_path)
    assert count(sheet, (0, 0, 255)) == count(sheet, (255, 0, 255)) == 96 * 96 // 2


def test_large_images_are_reduced_in_proportion(tmp_path: Path) -> None:
    sheet = drawn([replace(ROW, pictures={"source": picture(384, 768, (10, 200, 30))})], tmp_path)
    assert count(sheet, (10, 200, 30)) == 192 * 96


def test_a_stage_named_as_a_column_of_words_has_its_own_head(tmp_path: Path) -> None:
    stages = {"source": picture(8, 8, (1, 2, 3)), "strength": picture(8, 8, (4, 5, 6))}
    sheet = drawn([replace(ROW, pictures=stages)], tmp_path)
    left = int(np.nonzero((sheet == (4, 5, 6)).all(axis=2).any(axis=0))[0][0])
    head = sheet[54:88, left : left + 96]
    assert head.min() < 200


def test_every_row_is_drawn(tmp_path: Path) -> None:
    sheet = drawn([ROW] * 5, tmp_path)
    assert count(sheet, (200, 10, 190)) == 5 * 96 * 96


def test_every_stage_of_a_row_is_drawn_also_where_rows_have_others(tmp_path: Path) -> None:
    mask, final = picture(8, 8, (1, 2, 3)), picture(8, 8, (4, 5, 6))
    longer = replace(ROW, pictures={**ROW.pictures, "mask": mask, "final": final})
    sheet = drawn([ROW, longer], tmp_path)
    assert count(sheet, (1, 2, 3)) == count(sheet, (4, 5, 6)) == 96 * 96
    assert count(sheet, (200, 10, 190)) == 2 * 96 * 96


def test_the_bars_are_as_long_as_the_masses(tmp_path: Path) -> None:
    def orange(mass: float) -> int:
        row = replace(ROW, target_name="", soft_label={"": mass})
        return count(drawn([row], tmp_path), (0xF2, 0x8E, 0x2B))

    assert orange(0.8) - orange(0.4) == pytest.approx(orange(0.6) - orange(0.2), rel=0.02)
    assert orange(0.8) > orange(0.4)


def test_names_of_any_length_and_many_classes_fit(tmp_path: Path) -> None:
    names = {f"a very long name of a species that nobody remembers {n}": 0.1 for n in range(10)}
    row = replace(ROW, source_name=next(iter(names)), target_name="x" * 300, soft_label=names)
    assert drawn([row], tmp_path).shape[1] < 1400


def test_images_are_not_written_into(tmp_path: Path) -> None:
    before = ROW.pictures["source"].copy()
    drawn([ROW], tmp_path)
    assert (before == ROW.pictures["source"]).all()


def test_a_gallery_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must hold at least one image"):
        draw_gallery([], tmp_path / "gallery.png", title="")


def test_an_older_gallery_stays_when_a_new_one_cannot_be_drawn(tmp_path: Path) -> None:
    drawn([ROW], tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        draw_gallery([], tmp_path / "gallery.png", title="")
    assert [file.name for file in tmp_path.iterdir()] == ["gallery.png"]
