"""The experiment: what trainer and generation process agree on, and what runs share."""

import pickle

import numpy as np
import pytest
import torch
from experiment_samples import CLASS_NAMES, make_experiment
from tiny_model import copy_with, write_tiny_vae

from online_aug.config import Config
from online_aug.data.sources import load_splits
from online_aug.diffusion.adapters import CONCEPTS_FILE
from online_aug.diffusion.loading import load_img2img
from online_aug.errors import UserError
from online_aug.experiment.experiment import Experiment
from online_aug.experiment.images import BoundCompose, SourceImages

NO_FINETUNING = {"finetune": {"enabled": False}}


def keys(experiment):
    return [request.key for request in experiment.plan]


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    """Recipes without fine-tuning, which need no model to be loaded."""

    def make(model=tiny_model, **sections):
        return make_experiment(tmp_path, model, **NO_FINETUNING | sections)

    return make


def with_section(experiment_of, sections):
    """An experiment with some values changed and the rest of each section as it was."""
    base = experiment_of().config.model_dump(mode="json")
    base["method"] = {}  # its other keys are of its method
    return experiment_of(**{name: base[name] | values for name, values in sections.items()})


def finish_finetuning(experiment):
    experiment.diffusion.finetuned.mkdir(parents=True)
    (experiment.diffusion.finetuned / CONCEPTS_FILE).write_text("[]")


def test_a_plan_covers_every_training_image_in_every_variant(experiment_of):
    experiment = experiment_of()
    assert len(set(keys(experiment))) == len(experiment.plan) == 8 * 2
    train = experiment.splits.train
    assert {r.source_digest for r in experiment.plan} == {train.digest(i) for i in range(8)}


def test_two_processes_make_the_same_plan_from_one_configuration(experiment_of):
    assert list(experiment_of().plan) == list(experiment_of().plan)


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"seed": 5, "epochs": 9, "name": "other"}},
        {"mixing": {"synthetic_probability": 0.9, "starvation": "wait"}},
        {"method": {"gamma": 0.2}},
        {"optim": {"batch_size": 2, "lr": 0.3}},
        {"generation": {"slots": 2, "max_ahead": 3}},
        {"cache": {"codec": "jpeg"}},
        {"data": {"image_size": 32, "epoch_repeats": 3}},
        {"classifier": {"drop_rate": 0.1}},
    ],
)
def test_settings_that_do_not_decide_pixels_lead_to_the_same_requests(experiment_of, sections):
    assert set(keys(with_section(experiment_of, sections))) == set(keys(experiment_of()))


@pytest.mark.parametrize(
    "sections",
    [
        {"generation": {"seed": 1}},
        {"generation": {"num_inference_steps": 5}},
        {"generation": {"guidance_scale": 3.0}},
        {"generation": {"scheduler": "dpmsolver++"}},
        {"generation": {"resolution": 72}},
        {"generation": {"dtype": "float16"}},
        {"method": {"name": "diff_aug"}},
        {"data": {"metaclass": "digit"}},
    ],
)
def test_settings_that_decide_pixels_lead_to_other_requests(experiment_of, sections):
    assert not set(keys(with_section(experiment_of, sections))) & set(keys(experiment_of()))


def test_another_model_asks_for_other_images(experiment_of, tiny_model, tmp_path):
    other = copy_with(tiny_model, tmp_path / "other", "scheduler", prediction_type="epsilon")
    assert not set(keys(experiment_of(other))) & set(keys(experiment_of()))


def test_another_autoencoder_asks_for_other_images_of_the_same_fine_tuning(tmp_path, tiny_model):
    vae = {"vae": str(write_tiny_vae(tmp_path / "vae"))}
    own, replaced = (make_experiment(tmp_path, tiny_model, generation=each) for each in ({}, vae))
    assert replaced.diffusion.finetuned == own.diffusion.finetuned
    finish_finetuning(own)
    assert not set(keys(replaced)) & set(keys(own))


def test_fewer_images_ask_for_a_part_of_the_same(experiment_of):
    fewer = with_section(experiment_of, {"data": {"examples_per_class": 2}})
    assert len(fewer.plan) == 2 * 2 * 2
    assert set(keys(fewer)) < set(keys(experiment_of()))


def test_a_run_without_synthetic_images_plans_none_and_needs_no_model(experiment_of):
    experiment = experiment_of("/no/such/model", mixing={"synthetic_probability": 0})
    assert len(experiment.plan) == 0


def test_without_fine_tuning_prompts_hold_the_names(experiment_of):
    experiment = experiment_of()
    assert experiment.diffusion.finetuned is None
    assert experiment.diffusion.is_ready
    assert experiment.contexts["diff_mix"].prompts == tuple(
        f"a photo of a {name} bird" for name in CLASS_NAMES
    )


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_rare_classes_are_drawn_as_targets_by_their_sizes(experiment_of, tmp_path, balance):
    experiment_of()
    for number in (2, 3):
        (tmp_path / "images" / "train" / CLASS_NAMES[0] / f"{number}.png").unlink()
    experiment = experiment_of(method={"target_balance": balance})
    assert experiment.contexts["diff_mix"].class_sizes == (2, 4)
    targets = [request.target_label for request in experiment.plan_of(None)]
    assert 0 < targets.count(1) < len(targets)


@pytest.mark.parametrize("name", ["real_guidance", "real_mix"])
def test_the_real_baselines_are_not_fine_tuned_whatever_is_enabled(tmp_path, tiny_model, name):
    experiment = make_experiment(tmp_path, tiny_model, method={"name": name})
    assert experiment.config.finetune.enabled
    assert experiment.diffusion.finetuned is None
    assert {request.prompt for request in experiment.plan} <= {
        f"a photo of a {called} bird" for called in CLASS_NAMES
    }


@pytest.mark.parametrize("name", ["diff_aug", "diff_gen", "da_fusion"])
def test_the_other_baselines_share_diff_mix_s_fine_tuned_model(tmp_path, tiny_model, name):
    experiment = make_experiment(tmp_path, tiny_model, method={"name": name})
    assert (
        experiment.diffusion.finetuned == make_experiment(tmp_path, tiny_model).diffusion.finetuned
    )


def test_a_plan_before_fine_tuning_is_one_clear_line_with_the_way_out(tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model)
    assert not experiment.diffusion.is_ready
    with pytest.raises(UserError, match="run online-aug finetune") as caught:
        _ = experiment.plan
    assert "\n" not in str(caught.value)


def test_after_fine_tuning_prompts_hold_tokens_and_keys_the_result(
    tmp_path, tiny_model, experiment_of
):
    experiment = make_experiment(tmp_path, tiny_model)
    finish_finetuning(experiment)
    assert experiment.contexts["diff_mix"].prompts[1] == "a photo of a <class_1> bird"
    plain = experiment_of().contexts["diff_mix"].generator_fingerprint
    assert experiment.contexts["diff_mix"].generator_fingerprint != plain


def test_after_fine_tuning_lora_alone_prompts_hold_the_names(tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"mode": "lora"})
    finish_finetuning(experiment)
    assert experiment.contexts["diff_mix"].prompts[1] == f"a photo of a {CLASS_NAMES[1]} bird"


def test_another_unet_leads_to_another_fine_tuning_and_other_requests(tmp_path, tiny_model):
    path = tmp_path / "erased.pt"
    torch.save(load_img2img(tiny_model, "float32").unet.state_dict(), path)
    plain = make_experiment(tmp_path, tiny_model)
    generation = {**plain.config.generation.model_dump(mode="json"), "unet": str(path)}
    erased = make_experiment(tmp_path, tiny_model, generation=generation)
    erased.check(generates=True)
    assert erased.diffusion.finetuned != plain.diffusion.finetuned
    assert erased.diffusion.model_digest != plain.diffusion.model_digest


@pytest.fixture
def merged(tmp_path):
    """DA-Fusion's merged tokens for the two classes."""
    path = tmp_path / "birds-0-4.pt"
    torch.save({f"<{name}>": torch.full((128,), 0.1) for name in CLASS_NAMES}, path)
    return {"path": path, "mode": "textual_inversion"}


def test_imported_tokens_replace_fine_tuning(tmp_path, tiny_model, merged):
    experiment = make_experiment(tmp_path, tiny_model, finetune=merged)
    experiment.check(generates=True)
    assert experiment.diffusion.is_ready
    assert experiment.contexts["diff_mix"].prompts[1] == "a photo of a <class_1> bird"
    torch.testing.assert_close(
        experiment.diffusion.adapters.tokens["<class_1>"], torch.full((128,), 0.1)
    )


def test_other_imported_tokens_lead_to_other_requests(tmp_path, tiny_model, merged):
    first = make_experiment(tmp_path, tiny_model, finetune=merged).contexts["diff_mix"]
    torch.save({f"<{name}>": torch.ones(128) for name in CLASS_NAMES}, merged["path"])
    second = make_experiment(tmp_path, tiny_model, finetune=merged).contexts["diff_mix"]
    assert first.generator_fingerprint != second.generator_fingerprint


def test_tokens_that_do_not_fit_are_refused_before_anything_starts(tmp_path, tiny_model, merged):
    torch.save({"<emu>": torch.ones(128)}, merged["path"])
    experiment = make_experiment(tmp_path, tiny_model, finetune=merged)
    with pytest.raises(UserError, match="a token for every class, got none for 'crow', 'jay'"):
        experiment.check(generates=True)


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"examples_per_class": 2}},
        {"data": {"metaclass": "digit"}},
        {"data": {"hflip": 0.5}},
        {"generation": {"resolution": 72}},
        {"finetune": {"steps": 3}},
    ],
)
def test_other_images_prompts_or_settings_have_a_fine_tuning_of_their_own(
    tmp_path, tiny_model, sections
):
    def recipe_with(**changed):
        return make_experiment(tmp_path, tiny_model, **changed)

    base = recipe_with()
    assert with_section(recipe_with, sections).diffusion.finetuned != base.diffusion.finetuned
    assert recipe_with(run={"seed": 3}).diffusion.finetuned == base.diffusion.finetuned


def test_source_images_are_found_by_their_content(experiment_of):
    experiment = experiment_of()
    images = SourceImages(experiment.splits.train, experiment.data.sources)
    for index, source in enumerate(experiment.data.sources):
        expected = torch.from_numpy(experiment.splits.train.load(index)).permute(2, 0, 1)
        assert torch.equal(images.by_digest(source.digest), expected)
        assert torch.equal(images.by_index(index), expected)


def test_composing_pickles_to_worker_processes(experiment_of):
    experiment = experiment_of()
    compose = BoundCompose(experiment.parts)
    image = np.zeros((4, 4, 3), np.uint8)
    arguments = (lambda: image, image, experiment.plan[0])
    _, label = pickle.loads(pickle.dumps(compose))(*arguments, np.random.default_rng(0))
    np.testing.assert_array_equal(label, compose(*arguments, np.random.default_rng(0))[1])


@pytest.mark.parametrize("generates", [True, False])
def test_a_usable_generator_passes_the_check(experiment_of, generates):
    experiment_of().check(generates=generates)


def test_a_folder_without_a_model_is_refused_before_anything_starts(experiment_of, tmp_path):
    with pytest.raises(UserError, match="generation.model must be a diffusers model directory"):
        experiment_of(tmp_path).check(generates=True)


def test_serving_the_cache_of_a_generator_that_is_not_known_is_refused(tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model)
    experiment.check(generates=True)
    with pytest.raises(UserError, match="run online-aug finetune"):
        experiment.check(generates=False)


EDITING = {
    "method": {"name": "diffusemix"},
    "generation": {"scheduler": "euler_ancestral", "image_guidance_scale": 2.0},
}


@pytest.fixture
def diffusemix_of(tmp_path, tiny_editor):
    """Recipes that edit; fine-tuning is left as it is by default."""

    def make(model=tiny_editor, **sections):
        fractals = {"path": tmp_path / "fractals", "count": 3} | sections.pop("fractals", {})
        merged = {name: EDITING.get(name, {}) | values for name, values in sections.items()}
        return make_experiment(tmp_path, model, fractals=fractals, **EDITING | merged)

    return make


def test_an_edit_needs_no_fine_tuning(diffusemix_of):
    experiment = diffusemix_of()
    assert experiment.config.finetune.enabled
    assert experiment.diffusion.finetuned is None
    assert experiment.diffusion.is_ready


def test_a_plan_of_edits_says_the_paper_s_prompts_and_the_image_guidance(diffusemix_of):
    plan = diffusemix_of().plan
    assert {request.image_guidance_scale for request in plan} == {2.0}
    words = "A transformed version of image into "
    assert all(request.prompt.startswith(words) for request in plan)
    assert all(request.target_label == request.source_label for request in plan)


def test_a_template_s_other_braces_are_left_alone(diffusemix_of):
    method = {"template": "{x} {prompt} {}", "prompts": ["snowy"]}
    assert {request.prompt for request in diffusemix_of(method=method).plan} == {"{x} snowy {}"}


def test_no_fractal_is_drawn_before_a_run_starts(diffusemix_of, tmp_path):
    experiment = diffusemix_of()
    experiment.check(generates=True)
    assert experiment.plan
    assert not (tmp_path / "fractals").exists()


@pytest.mark.parametrize(
    ("resolution", "wanted", "side"), [(64, None, 64), (512, None, 256), (64, 32, 32)]
)
def test_fractals_are_as_large_as_generated_images_up_to_a_limit(
    diffusemix_of, resolution, wanted, side
):
    experiment = diffusemix_of(generation={"resolution": resolution}, fractals={"side_px": wanted})
    assert experiment.resources["diffusemix"].side_px == side


def test_a_folder_without_fractals_is_refused_before_anything_starts(diffusemix_of, tmp_path):
    (tmp_path / "none").mkdir()
    experiment = diffusemix_of(fractals={"folder": tmp_path / "none"})
    with pytest.raises(UserError, match=r"^fractals\.folder must be a folder with images, got "):
        experiment.check(generates=True)


def test_a_model_of_the_wrong_kind_is_refused_before_anything_starts(
    diffusemix_of, experiment_of, tiny_model, tiny_editor
):
    with pytest.raises(UserError, match=r"must be an InstructPix2Pix for method\.name diffusemix"):
        diffusemix_of(tiny_model).check(generates=True)
    with pytest.raises(UserError, match="must be a text-to-image model for this method"):
        experiment_of(tiny_editor).check(generates=True)


def several(*names):
    return {"method": [{"name": name} for name in names]}


@pytest.fixture
def mixture_of(tmp_path, tiny_model):
    """Recipes of several methods, without fine-tuning unless it is asked for."""

    def make(*names, model=tiny_model, **sections):
        config = make_experiment(tmp_path, model, **NO_FINETUNING | sections).config
        values = config.model_dump(mode="json") | several(*names)
        return Experiment(Config.model_validate(values), load_splits(config.data), "cpu")

    return make


def test_several_methods_share_the_images_each_as_it_would_alone(mixture_of, experiment_of):
    plan = mixture_of("diff_mix", "diff_aug").plan
    assert len(plan) == 8 * 2
    for name in ("diff_mix", "diff_aug"):
        shared = {request.key for request in plan if request.method == name}
        assert shared
        assert shared < set(keys(experiment_of(method={"name": name})))


def test_several_methods_are_labelled_each_by_its_own_settings(mixture_of):
    experiment = mixture_of("diff_mix", "diff_aug")
    assert set(experiment.contexts) == {"diff_mix", "diff_aug"}
    compose, image = BoundCompose(experiment.parts), np.zeros((4, 4, 3), np.uint8)
    for request in experiment.plan:
        _, label = compose(lambda: image, image, request, np.random.default_rng(0))
        is_one_hot = request.source_label == request.target_label
        assert (float(label.max()) == 1) == is_one_hot


def test_float16_on_a_cpu_is_refused_while_there_is_something_to_learn(tmp_path, tiny_model):
    experiment = make_experiment(tmp_path, tiny_model, finetune={"dtype": "float16"})
    with pytest.raises(UserError, match="^finetune.dtype must be float32 or bfloat16 on cpu, got"):
        experiment.check(generates=True)
    finish_finetuning(experiment)
    experiment.check(generates=True)
