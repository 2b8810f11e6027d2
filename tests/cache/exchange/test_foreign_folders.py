"""Images of other programs get requests from their folders, names and tables."""

import csv
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest
from exchange_samples import assert_refused, contents, write_image

from cache import content_digest, request_key


def requests(path):
    return [request for request, *_ in contents(path).values()]


@pytest.fixture
def diff_mix(tmp_path):
    """A folder of Diff-Mix's sample_mp.py before it has written meta.csv."""
    root = tmp_path / "shot1_diff-mix_fixed_0.7"
    write_image(root / "data/Black_Tern/Red-eyed_Vireo-000000-0.7.png", 1)
    write_image(root / "data/Red-eyed_Vireo/Red-eyed_Vireo-000001-0.9.png", 2)
    (root / "data/Mallard").mkdir()
    (root / "config.yaml").write_text("seed: 0\n")
    return root


def write_meta(root, paths):
    with (root / "meta.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["First Directory", "Second Directory", "Number", "Strength", "Path"])
        table.writerows(["Black Tern", "Mallard", 0, 0.7, path] for path in paths)


def test_a_diff_mix_folder_gives_both_classes_strength_and_number(diff_mix, tmp_path, run):
    assert run("import", tmp_path / "c", diff_mix)[0] == 0
    first, second = sorted(requests(tmp_path / "c"), key=lambda request: request["variant"])
    assert first == {
        "method": "diff_mix",
        "origin": "import",
        "image_digest": content_digest(
            (diff_mix / "data/Black_Tern/Red-eyed_Vireo-000000-0.7.png").read_bytes()
        ),
        "source_class": "Black Tern",
        "source_label": 0,
        "target_class": "Red-eyed Vireo",
        "target_label": 2,
        "strength": 0.7,
        "variant": 0,
    }
    assert (second["source_label"], second["target_label"], second["strength"]) == (2, 2, 0.9)


def test_a_diff_mix_folder_with_its_table_gives_what_the_table_lists(diff_mix, tmp_path, run):
    write_meta(diff_mix, ["Black_Tern/Red-eyed_Vireo-000000-0.7.png"])
    run("import", tmp_path / "c", diff_mix)
    assert [request["source_class"] for request in requests(tmp_path / "c")] == ["Black Tern"]


def test_named_classes_decide_the_labels(diff_mix, tmp_path, run):
    names = tmp_path / "names.txt"
    names.write_text("Mallard\nRed-eyed Vireo\nBlack Tern\n")
    run("import", tmp_path / "c", diff_mix, "--classes", names)
    found = {
        request["source_class"]: request["source_label"] for request in requests(tmp_path / "c")
    }
    assert found == {"Black Tern": 2, "Red-eyed Vireo": 1}


def test_a_diffusemix_output_gives_class_prompt_and_source_file(tmp_path, run):
    root = tmp_path / "result"
    write_image(root / "generated/sea gull/0001.jpg_generated_ukiyo-e_0.jpg", 1, quality=90)
    write_image(root / "generated/wren/b_c.jpg_generated_a sketch with crayon_1.jpg", 2)
    write_image(root / "blended/wren/b_c.jpg_blended_snowy_0.jpg", 3)
    assert run("import", tmp_path / "c", root)[0] == 0
    first, second = sorted(requests(tmp_path / "c"), key=lambda request: request["variant"])
    assert (first["method"], first["prompt"]) == ("diffusemix", "ukiyo-e")
    assert (first["source_file"], first["source_label"], first["target_label"]) == (
        "0001.jpg",
        0,
        0,
    )
    assert (second["prompt"], second["source_file"]) == ("a sketch with crayon", "b_c.jpg")
    assert second["target_class"] == "wren"


def test_plain_class_folders_give_the_class(tmp_path, run):
    write_image(tmp_path / "p/a/x.png", 1)
    write_image(tmp_path / "p/b/deep/y.jpg", 2)
    write_image(tmp_path / "p/b/.hidden.png", 3)
    assert run("import", tmp_path / "c", tmp_path / "p", "--method", "mine")[0] == 0
    found = {request["source_class"]: request for request in requests(tmp_path / "c")}
    assert {name: request["target_label"] for name, request in found.items()} == {"a": 0, "b": 1}
    assert {request["method"] for request in found.values()} == {"mine"}


def test_a_foreign_file_is_one_record_wherever_it_lies_in_its_class(tmp_path, run):
    write_image(tmp_path / "p/a/x.png", 1)
    write_image(tmp_path / "p/a/copy.png", 1)
    _, out, _ = run("import", tmp_path / "c", tmp_path / "p", "--json")
    assert (json.loads(out)["done"], json.loads(out)["present"]) == (1, 1)


def test_keys_are_the_requests_own(diff_mix, tmp_path, run):
    run("import", tmp_path / "c", diff_mix)
    for key, (request, *_) in contents(tmp_path / "c").items():
        assert key == request_key(request)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_any_kind_of_image_becomes_rgb(mode, tmp_path, run):
    suffix = "jpg" if mode == "CMYK" else "png"
    write_image(tmp_path / f"p/a/x.{suffix}", 1, mode)
    assert run("import", tmp_path / "c", tmp_path / "p")[0] == 0
    with PIL.Image.open(tmp_path / f"p/a/x.{suffix}") as image:
        expected = np.asarray(image.convert("RGB"))
    ((_, _, _, (shape, pixels), _),) = contents(tmp_path / "c").values()
    assert (shape, pixels) == (expected.shape, expected.tobytes())


def test_shards_of_others_give_their_class(tmp_path, run):
    write_image(tmp_path / "x.png", 1)
    image = (tmp_path / "x.png").read_bytes()
    folder = tmp_path / "shards"
    folder.mkdir()
    long_name = "d" * 90 + "/" + "\N{SNOWMAN}" * 80
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for stem in ("n01/0001", long_name):
            for suffix, content in ((".png", image), (".cls", b"7\n"), (".other", b"?")):
                member = tarfile.TarInfo(stem + suffix)
                member.size, member.mtime = len(content), 1.5
                tar.addfile(member, io.BytesIO(content))
    status, out, _ = run("import", tmp_path / "c", folder, "--json")
    assert (status, json.loads(out)["done"], json.loads(out)["present"]) == (0, 1, 1)
    (request,) = requests(tmp_path / "c")
    assert (request["method"], request["target_label"]) == ("webdataset", 7)


def test_a_format_that_does_not_fit_is_refused(diff_mix, tmp_path, run):
    for format in ("folder", "diffusemix", "webdataset"):
        result = run("import", tmp_path / "c", diff_mix, "--format", format)
        assert_refused(result, f"source must be of the format {format}")
    assert not (tmp_path / "c").exists()


@pytest.fixture
def da_fusion(tmp_path):
    """A folder of DA-Fusion's training script, and the list of its training images."""
    root = tmp_path / "aug"
    for index, number in ((0, 0), (1, 0), (1, 9), (10, 1)):
        write_image(root / f"aug-{index}-{number}.png", 10 * index + number)
    order = tmp_path / "order.txt"
    order.write_text("".join(f"photos/{'wren' if k % 2 else 'crow'}/{k}.jpg\n" for k in range(11)))
    return root, order


def test_da_fusion_s_images_get_class_and_source_from_the_list_of_training_images(
    da_fusion, tmp_path, run
):
    root, order = da_fusion
    assert run("import", tmp_path / "c", root, "--order", order)[0] == 0
    found = {
        (one["source_file"], one["variant"]): (one["target_class"], one["source_label"])
        for one in requests(tmp_path / "c")
    }
    crow, wren = ("crow", 0), ("wren", 1)
    assert found == {
        ("0.jpg", 0): crow,
        ("1.jpg", 0): wren,
        ("1.jpg", 9): wren,
        ("10.jpg", 1): crow,
    }
    assert {one["method"] for one in requests(tmp_path / "c")} == {"da_fusion"}


def test_da_fusion_s_other_script_names_the_class_which_must_be_that_of_the_list(tmp_path, run):
    root, order = tmp_path / "out", tmp_path / "order.txt"
    order.write_text("dining table/7.jpg\ncrow/9.jpg\n")
    for name in ("dining_table-0-0", "dining_table-0-1", "crow-1-0", "crow-0-2"):
        write_image(root / f"{name}.png", len(name))
    status, out, _ = run("import", tmp_path / "c", root, "--order", order, "--json")
    assert (status, json.loads(out)["done"], json.loads(out)["broken"]) == (1, 3, 1)
    found = {
        (one["source_file"], one["variant"], one["source_class"])
        for one in requests(tmp_path / "c")
    }
    assert found == {
        ("7.jpg", 0, "dining table"),
        ("7.jpg", 1, "dining table"),
        ("9.jpg", 0, "crow"),
    }


def test_da_fusion_s_images_need_the_list(da_fusion, tmp_path, run):
    status, _, said = run("import", tmp_path / "c", da_fusion[0])
    assert status == 2
    assert "--order must be a file that lists the training images" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "0.jpg\n"])
def test_a_list_without_classes_is_refused(content, da_fusion, tmp_path, run):
    da_fusion[1].write_text(content)
    status, _, said = run("import", tmp_path / "c", da_fusion[0], "--order", da_fusion[1])
    assert status == 2
    assert "--order must hold CLASS/FILE a line" in said


def test_an_index_behind_the_list_is_left_out(da_fusion, tmp_path, run):
    root, order = da_fusion
    order.write_text("crow/a.jpg\nwren/b.jpg\n")
    status, out, _ = run("import", tmp_path / "c", root, "--order", order, "--json")
    assert (status, json.loads(out)["done"], json.loads(out)["broken"]) == (1, 3, 1)


def test_classes_are_known_in_any_case_and_with_a_doubt(tmp_path, run):
    write_image(tmp_path / "p/Sword_Lily/x.png", 1)
    write_image(tmp_path / "p/Tern/y.png", 2)
    (tmp_path / "names.txt").write_text("tern\nTern\nsword lily?\n")
    run("import", tmp_path / "c", tmp_path / "p", "--classes", tmp_path / "names.txt")
    found = {one["source_class"]: one["source_label"] for one in requests(tmp_path / "c")}
    assert found == {"Sword_Lily": 2, "Tern": 1}
