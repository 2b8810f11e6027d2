"""Weights of images from a file: by file or digest, or one clear line."""

import json

import pytest

from online_aug.errors import UserError
from online_aug.experiment.images import read_image_weights

FILES = ("crow/0.png", "crow/1.png", "jay/0.png")
DIGESTS = ("a0", "b1", "c2")


@pytest.fixture
def file_of(tmp_path):
    def write(content):
        path = tmp_path / "weights.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_images_are_named_by_their_files_or_by_their_digests(file_of):
    path = file_of({FILES[0]: 2.5, DIGESTS[2]: 1})
    assert read_image_weights(path, DIGESTS, FILES) == {DIGESTS[0]: 2.5, DIGESTS[2]: 1.0}


def test_images_that_are_in_no_files_are_named_by_their_digests(file_of):
    assert read_image_weights(file_of({DIGESTS[1]: 3}), DIGESTS, ()) == {DIGESTS[1]: 3.0}
    with pytest.raises(UserError, match=r"must name training images, such as 'c2', got 'crow/0"):
        read_image_weights(file_of({FILES[0]: 3}), DIGESTS, ())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "must be a JSON file, cannot read "),
        ("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), "must be a JSON file, "),
        ([1], "must hold a mapping of images to weights, got list in "),
        ({"emu/0.png": 1}, "must name training images, such as 'jay/0.png', got 'emu/0.png' in "),
        ({FILES[0]: 0}, "must hold numbers above 0, got 0 for 'crow/0.png' in "),
        ({FILES[0]: -1.5}, "must hold numbers above 0, got -1.5 for "),
        ({FILES[0]: "2"}, 'must hold numbers above 0, got "2" for '),
        ({FILES[0]: True}, "must hold numbers above 0, got true for "),
        ({FILES[0]: None}, "must hold numbers above 0, got null for "),
        (f'{{"{FILES[0]}": NaN}}', "must hold numbers above 0, got NaN for "),
        (f'{{"{FILES[0]}": Infinity}}', "must hold numbers above 0, got Infinity for "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(file_of, content, line):
    with pytest.raises(UserError) as caught:
        read_image_weights(file_of(content), DIGESTS, FILES)
    message = str(caught.value)
    assert message.startswith(f"schedule.image_weights {line}")
    assert "\n" not in message


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file or directory$"):
        read_image_weights(tmp_path / "none.json", DIGESTS, FILES)
