"""Imported images and weights of training images."""

import json

import numpy as np
import pytest
from experiment_samples import CLASS_NAMES, make_experiment
from PIL import Image

from cache import CacheError, Entry, Store, request_key
from online_aug.distributed.devices import plan_devices
from online_aug.distributed.world import World
from online_aug.errors import UserError
from online_aug.experiment.images import ImportFinder, SourceImages
from online_aug.experiment.training_data import read_image_weights
from online_aug.file_digests.digests import Digests
from online_aug.planning import Listed
from online_aug.reporting.gallery import gallery_rows
from online_aug.training.build_loader import agreed_imports
from online_aug.training.describe_run import describe_run

BETWEEN = {
    "origin": "import",
    "method": "diff_mix",
    "source_class": "crow",
    "source_label": 7,
    "target_class": "jay",
    "target_label": 9,
    "strength": 0.5,
}
WITHIN = {"origin": "import", "source_class": "jay", "target_class": "jay"}
EDIT = WITHIN | {"method": "diffusemix", "prompt": "snowy", "source_file": "2.png"}
MODEL = "/no/such/model"


@pytest.fixture
def experiment_of(tmp_path):
    """An experiment on a cache with these requests; its model is never looked at."""

    def make(*requests, **sections):
        with Store(tmp_path / "cache") as store:
            image = np.full((8, 8, 3), 90, np.uint8)
            store.put_many([Entry(request, image) for request in requests])
        mixing = {"imported": "only"} | sections.pop("mixing", {})
        return make_experiment(tmp_path, MODEL, mixing=mixing, **sections)

    return make


def found(experiment):
    return [
        (image.source_label, image.target_label, image.strength)
        for image in experiment.imports.images
    ]


@pytest.mark.parametrize("source_filter", ["bilinear", "bicubic"])
def test_a_source_is_made_a_square_as_pillow_does_it(experiment_of, source_filter):
    experiment = experiment_of()
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    digest = experiment.data.sources[0].digest
    whole = Image.fromarray(images.by_digest(digest).permute(1, 2, 0).numpy())
    expected = np.array(whole.resize((48, 48), Image.Resampling[source_filter.upper()]))
    made = images.square(digest, 48, source_filter).permute(1, 2, 0).numpy()
    assert np.abs(made.astype(int) - expected).max() <= (source_filter == "bilinear")
    assert np.ptp(expected) > 0


def test_the_names_of_the_classes_give_the_labels_whatever_numbers_the_importer_gave_them(
    experiment_of,
):
    experiment = experiment_of(BETWEEN)
    (image,) = experiment.imports.images
    assert image.key == request_key(BETWEEN)
    assert found(experiment) == [(0, 1, 0.5)]


def test_an_image_without_class_names_has_the_labels_it_states(experiment_of):
    assert found(experiment_of({"origin": "import", "source_label": 1, "target_label": 1})) == [
        (1, 1, 1.0)
    ]


def test_an_image_within_one_class_needs_no_strength(experiment_of):
    assert found(experiment_of(WITHIN)) == [(1, 1, 1.0)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_class": "owl"}, "the data set has no class 'owl'"),
        ({"target_class": None, "target_label": 2}, "its target class is not known"),
        ({"source_class": None, "source_label": True}, "its source class is not known"),
        ({"strength": None}, "its strength is not known"),
        ({"strength": 1.5}, "its strength is not known"),
    ],
)
def test_an_import_that_cannot_be_labelled_is_left_out_with_a_reason(change, reason, experiment_of):
    imports = experiment_of(WITHIN, BETWEEN | change).imports
    assert len(imports.images) == 1
    assert [*imports.misfits.values()] == [1]
    assert reason in str(imports)


@pytest.mark.parametrize("method", ["diff_aug", "sgd_mix"])
def test_a_method_that_keeps_the_class_takes_no_image_between_two(method, experiment_of):
    imports = experiment_of(BETWEEN, WITHIN, method={"name": method}).imports
    assert [(image.source_label, image.target_label) for image in imports.images] == [(1, 1)]
    assert "1 left out: it lies between two classes" in str(imports)


def test_diffusemix_takes_an_edit_whose_source_is_a_training_image_of_that_name(experiment_of):
    unknown = EDIT | {"source_file": "9.png"}
    experiment = experiment_of(EDIT, unknown, WITHIN, method={"name": "diffusemix"})
    (image,) = experiment.imports.images
    train = experiment.splits.train
    place = experiment.data.places[image.source_digest]
    assert (train.path(place).name, train.labels[place]) == ("2.png", 1)
    assert experiment.imports.misfits.total() == 2
    assert "its source image is not known" in str(experiment.imports)


@pytest.mark.parametrize("name", ["Crow", "crow?", "CROW ?", "crow"])
def test_a_class_is_known_in_any_case_and_with_a_doubt(experiment_of, name):
    assert found(experiment_of(WITHIN | {"source_class": name, "target_class": name})) == [
        (0, 0, 1.0)
    ]


def test_an_import_made_of_a_test_image_is_told(experiment_of, tmp_path):
    experiment = experiment_of(WITHIN | {"source_file": "t.png"}, WITHIN)
    (tmp_path / "images/test/jay/0.png").rename(tmp_path / "images/test/jay/t.png")
    experiment = make_experiment(tmp_path, MODEL, mixing={"imported": "only"})
    (said,) = experiment.imports.warnings
    assert said == "1 imported images are made of files that are test images of this data set"
    assert f"warning    {said}" in describe_run(experiment, plan_devices(experiment.config.devices))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "may be made of official test images: Diff-Mix's code trains on half of each class"),
        ({"train_split": "half", "seed": 3}, "halves are drawn by data.seed=0, got 3"),
        ({"train_split": "half"}, None),
    ],
)
def test_diff_mix_s_flowers_fit_the_halves_of_seed_0_only(experiment_of, data, said):
    experiment = experiment_of(BETWEEN, WITHIN)
    chosen = experiment.config.data.model_copy(update={"source": "oxford_flowers", **data})
    config = experiment.config.model_copy(update={"data": chosen})
    found = ImportFinder(config, experiment.splits, experiment.data.sources).find()
    assert len(found.images) == 2
    assert [said in warning for warning in found.warnings] == ([True] if said else [])


def test_with_local_variants_an_import_needs_a_known_source(experiment_of):
    imports = experiment_of(BETWEEN, EDIT, mixing={"policy": "local"}).imports
    assert [image.key for image in imports.images] == [request_key(EDIT)]
    assert "which mixing.policy local asks for" in str(imports)


def test_an_image_of_our_own_is_no_import(experiment_of):
    experiment = experiment_of(
        BETWEEN, {"method": "diff_mix", "source_label": 0, "target_label": 0}
    )
    assert len(experiment.imports.images) == 1


def test_imports_are_ignored_unless_configured(experiment_of):
    assert experiment_of(BETWEEN, mixing={"imported": None}).imports.images == []


def test_a_run_of_imports_alone_needs_no_generator(experiment_of):
    experiment = experiment_of(BETWEEN)
    experiment.check(generates=False)
    assert len(experiment.plan) == 0
    plan = plan_devices(experiment.config.devices, cores=2, generates=False)
    assert plan.generate == ()
    said = describe_run(experiment, plan)
    assert "requests   0" in said
    assert "imported   1 images fit\n" in said


def test_imports_that_all_do_not_fit_are_refused_with_the_reason(experiment_of):
    experiment = experiment_of(BETWEEN | {"source_class": "owl"}, BETWEEN | {"source_class": "emu"})
    with pytest.raises(UserError, match="images of other programs .*1 left out: the data"):
        experiment.check(generates=False)


def test_a_cache_without_imports_is_refused_with_the_way_out(experiment_of):
    with pytest.raises(UserError, match="got none: online-aug cache import .* brings them in"):
        experiment_of().check(generates=False)
    experiment = experiment_of({"method": "diff_mix"})
    with pytest.raises(UserError, match=r"its 1 images are online-aug's own.*imported=null"):
        experiment.check(generates=False)


def test_a_missing_cache_is_refused_and_not_made(tmp_path):
    experiment = make_experiment(tmp_path, MODEL, mixing={"imported": "only"})
    with pytest.raises(CacheError, match="must be a directory with a cache"):
        experiment.check(generates=False)
    assert not (tmp_path / "cache").exists()


def test_ranks_that_see_other_imports_are_refused(experiment_of, monkeypatch):
    experiment, world = experiment_of(BETWEEN), World(0, 1, 0, "cpu")
    assert agreed_imports(experiment, world) == experiment.imports.images
    monkeypatch.setattr("online_aug.distributed.world.agree", lambda world, n: max(n, 5))
    with pytest.raises(UserError, match="must be the same on every rank"):
        agreed_imports(experiment, world)


def test_the_gallery_shows_an_import_with_its_source_if_known(experiment_of):
    experiment = experiment_of(EDIT, BETWEEN)
    with Store(experiment.config.cache.path, readonly=True) as store:
        within, between = sorted(
            gallery_rows(experiment, Listed(experiment.imports.images), store, 5),
            key=lambda row: -row.strength,
        )
    assert (between.source_name, between.target_name) == CLASS_NAMES
    assert [*between.pictures] == ["generated"]
    assert (between.pictures["generated"] == 90).all()
    with Image.open(experiment.splits.train.path(6)) as source:
        np.testing.assert_array_equal(within.pictures["source"], np.asarray(source))
    assert within.soft_label == {"jay": 1.0}


FILES = ("crow/0.png", "crow/1.png", "jay/0.png")
DIGESTS = Digests.of(["a0" * 16, "b1" * 16, "c2" * 16])


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
    with pytest.raises(
        UserError, match=r"must name training images, such as '(c2){16}', got 'crow/0"
    ):
        read_image_weights(file_of({FILES[0]: 3}), DIGESTS, ())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "must be a JSON file that maps "),
        (
            "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
            "must be a JSON file that maps ",
        ),
        ([1], "must be a JSON file that maps images to weights, "),
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
    with pytest.raises(UserError, match=r"cannot use .*none\.json: No such file or directory$"):
        read_image_weights(tmp_path / "none.json", DIGESTS, FILES)
