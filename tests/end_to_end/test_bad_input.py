"""Mistakes of a person: one clear line, exit status 2, nothing started, nothing written."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from published_samples import write_mnist
from safetensors.torch import load_file, save_file
from tiny_model import copy_with, write_tiny_vae
from tiny_runs import Launch, processes_of, write_config

from online_aug.config.loading import load_config, resolved_yaml
from online_aug.training import checkpoints

# Overrides, and how the one line goes; {place} is a folder with the material of `spoil`.
CASES = {
    "unknown key": (["run.sed=1"], r"run\.sed is no known key, got 1; did you mean run\.seed\?"),
    "wrong type": (["run.epochs=many"], r'run\.epochs must be a whole number >= 1, got "many"'),
    "strength 0": (["method.strength=0"], r"method\.strength must be .*a number > 0 and <= 1.* 0$"),
    "strength 2": (["method.strength=2"], r"method\.strength must be .*a number > 0 and <= 1.* 2$"),
    "no step": (["method.strength=0.05"], r"method\.strength \* .* at least 1, got 0\.05 \* 10$"),
    "resolution": (["generation.resolution=60"], r"must be .* a multiple of 8, or null, got 60$"),
    "no training device": (["devices.train=[]"], r"devices\.train must be auto, .*got \[\]$"),
    "unknown device": (["devices.train=[cuda:7]"], r"a device of this machine \(.*'cuda:7'$"),
    "unknown generating device": (
        ["devices.generate=cuda:7"],
        r"devices\.generate must be a device of this machine \(.*'cuda:7'$",
    ),
    "unknown classifier": (["classifier.name=resnt50"], r"classifier\.name .* nearest: resnet50"),
    "no weights": (
        ["classifier.checkpoint={place}/w.pt"],
        r"classifier\.checkpoint must be a file",
    ),
    "weights of another classifier": (
        ["classifier.checkpoint={place}/vit.safetensors"],
        r"classifier\.checkpoint must hold the weights of test_resnet with 10 classes, .*vit\.safet"
        r"ensors lacks .* and has unknown .* more$",
    ),
    "a teacher of other classes": (
        [
            "method.name=sgd_mix",
            "method.candidates=[3, 5]",
            "saliency.teacher={place}/weights.safetensors",
        ],
        r"saliency\.teacher must hold the weights of test_resnet with 10 classes, .* differs",
    ),
    "masks of other images": (
        [
            "method.name=sgd_mix",
            "method.candidates=[3, 5]",
            "saliency.method=masks",
            "saliency.masks={place}",
        ],
        r"saliency\.masks must hold a usable mask for each of the 40 .*, got 40 missing",
    ),
    "no segmenter": (
        [
            "method.name=sgd_mix",
            "method.candidates=[3, 5]",
            "saliency.method=segmenter",
            "saliency.segmenter={place}/none.onnx",
        ],
        r"saliency\.segmenter must be a directory .*none\.onnx', which is no directory here$",
    ),
    "images too small for the classifier": (
        ["classifier.name=test_coatnet", "data.image_size=16"],
        r"data\.image_size must be a size that test_coatnet can take, got 16: .*too small.*32$",
    ),
    "more candidates than images": (
        ["method.name=sgd_mix", "method.candidates=[30, 50]"],
        r"method\.candidates must be at most 39, the other training images, got \[30, 50\]$",
    ),
    "candidates the wrong way round": (
        ["method.name=sgd_mix", "method.candidates=[5, 3]"],
        r"method\.candidates must be fewest then most, got \[5, 3\]$",
    ),
    "methods for two kinds of model": (
        ["method=[{{name: diff_mix}}, {{name: diffusemix}}]"],
        r"method must list methods for one kind of model, got diff_mix .* and diffusemix",
    ),
    "a method twice": (
        ["method=[{{name: diff_mix}}, {{name: diff_mix, gamma: 1}}]"],
        r"method must list each method once, got diff_mix twice$",
    ),
    "no instruction": (
        ["method.name=diffusemix", "method.prompts=[]"],
        r"method\.prompts must be a list of at least 1: .*, got \[\]$",
    ),
    "no fractal": (
        ["method.name=diffusemix", "fractals.folder={place}/no_class"],
        r"fractals\.folder must be a folder with images, got {place}/no_class; null takes our own",
    ),
    "a model that takes no instruction": (
        ["method.name=diffusemix"],
        r"generation\.model must be an InstructPix2Pix for method\.name diffusemix, got .* text-to",
    ),
    "no CLIP": (
        ["gate.clip={place}"],
        r"gate\.clip must be a directory with a CLIP model and its processor in transformers' ",
    ),
    "no teacher": (
        ["method.name=sgd_mix", "method.candidates=[3, 5]", "saliency.teacher={place}/w.pt"],
        r"saliency\.teacher must be a file",
    ),
    "unknown teacher": (
        ["method.name=sgd_mix", "saliency.teacher={place}/w.pt", "saliency.name=resnt50"],
        r"saliency\.name .* nearest: resnet50",
    ),
    "maps of another size": (
        [
            *("method.name=sgd_mix", "saliency.teacher=classifier"),
            *("classifier.name=test_vit", "saliency.image_size=64"),
        ],
        r"saliency\.image_size must be null or 32, the one size that test_vit takes .* got 64$",
    ),
    "batch and ranks": (
        ["devices.train=[cpu, cpu]", "optim.batch_size=7"],
        r"optim\.batch_size must be a multiple of the 2 training devices, got 7$",
    ),
    "setting of ours": (
        ["classifier.deepspeed={{optimizer: 1}}"],
        r"classifier\.deepspeed must not set optimizer \(1: set optim\.name",
    ),
    "no file of settings": (
        ["classifier.deepspeed={place}/ds.json"],
        r"classifier\.deepspeed must be a mapping or a JSON file that holds one: .*: No such file",
    ),
    "average of divided weights": (
        ["classifier.deepspeed.zero_optimization.stage=3", "optim.ema=0.9"],
        r"optim\.ema must be null with ZeRO stage 3, .* got 0\.9$",
    ),
    "no such stage": (
        ["classifier.deepspeed.zero_optimization.stage=7"],
        r"zero_optimization must be \{stage: 0, 1, 2 or 3\}, got \{'stage': 7\}$",
    ),
    "setting that DeepSpeed does not know": (
        ["classifier.deepspeed={{zero_optimization: {{stage: 1, nonsense: 3}}}}"],
        r"classifier\.deepspeed must be settings of DeepSpeed: .*nonsense; Extra inputs are not ",
    ),
    "settings that do not go together": (
        ["classifier.deepspeed={{data_types: {{grad_accum_dtype: bf16}}}}"],
        r"settings that DeepSpeed can train test_resnet with adamw under: unsupported mix of ",
    ),
    "float16 on a cpu": (
        ["classifier.precision=float16", "devices.train=cpu"],
        r"classifier\.precision must be float32 or bfloat16 on a CPU",
    ),
    "unknown optimizer": (["optim.name=adanw2"], r"optim\.name must be an optimizer of timm"),
    "unknown policy": (["data.auto_augment=never"], r"data\.auto_augment must be a policy of timm"),
    "probability of no class": (
        ["mixing.class_probability={{emu: 0.5}}"],
        r"mixing\.class_probability must name classes of data\.source, got 'emu'; known: 0, 1",
    ),
    "parts that do not divide": (
        ["optim.accumulation=3"],
        r"optim\.accumulation must divide the 10 images of a step on each device, got 3$",
    ),
    "adapter that is none": (
        ["generation.scheduler=lcm", "generation.few_step_adapter=."],
        r"generation\.few_step_adapter must be a LoRA file or a folder with one, got \. with none$",
    ),
    "unknown solver": (
        ["generation.scheduler=heun"],
        r"generation\.scheduler must be .*dpmsolver\+\+.*, got .?heun",
    ),
    "xformers on a cpu": (
        ["generation.attention=xformers", "devices.generate=cpu"],
        r"generation\.attention must be auto or sdpa on cpu, got 'xformers'$",
    ),
    "weights of images that are not there": (
        ["schedule.image_weights={place}/weights.json"],
        r"schedule\.image_weights must name training images, such as .*, got 'emu' in {place}/w",
    ),
    "two kinds of weights": (
        [
            "schedule.image_weights={place}/weights.json",
            "schedule.priority=hard",
            "mixing.starvation=substitute",
        ],
        r"schedule\.priority must be uniform if schedule\.image_weights is given, got hard$",
    ),
    "missing folder": (["data.source={place}/none"], r"data\.source must be .*, got {place}/none$"),
    "no class": (["data.source={place}/no_class"], r"must hold a folder for each class"),
    "one class": (["data.source={place}/one_class"], r"at least two classes, got only 'cat'$"),
    "empty class": (["data.source={place}/empty_class"], r"class 'dog' in .*empty_class has none$"),
    "one-image class": (
        ["data.source={place}/one_image", "data.examples_per_class=null"],
        r"class 'dog' must have at least 3 training images to cut val and test .*, got 1$",
    ),
    "few images": (["data.examples_per_class=1000"], r"must have at least 1000 training images"),
    "class unknown in val": (
        ["data.source={place}/stranger"],
        r"every class of the val split must be in train, 'emu' of .*stranger/val is not$",
    ),
    "label of no class in a timm set": (
        ["data.source=torch/mnist"],
        r"labels of torch/mnist \(test\) must be whole numbers from 0 to 9, .* got 10$",
    ),
    "broken image": (
        ["data.source={place}/broken_image"],
        r"broken_image/dog/3\.png cannot be read.*, or set data\.on_bad_image=skip$",
    ),
    "model that is none": (
        ["generation.model={place}/no_class"],
        r"generation\.model must be a diffusers model directory .*, got '{place}/no_class'$",
    ),
    "model of another kind": (
        ["generation.model={place}/other_model"],
        r"generation\.model must be a Stable Diffusion .*_model lacks text_encoder, tokenizer$",
    ),
    "spoilt model": (
        ["generation.model={place}/spoilt_model"],
        r"generation\.model must have a readable {place}/spoilt_model/model_index\.json: ",
    ),
    "model cut short": (
        ["generation.model={place}/short_model"],
        r"generation\.model must have whole weight files, got {place}/short_model/unet/.*again$",
    ),
    "autoencoder of another class": (
        ["generation.vae={place}/plain_model/vae"],
        r"generation\.vae must be .* AutoencoderTiny, got {place}/.*, which holds AutoencoderKL$",
    ),
    "autoencoder cut short": (
        ["generation.vae={place}/short_vae"],
        r"generation\.vae must have whole weight files, got {place}/short_vae/.*again$",
    ),
    "model without attention": (
        ["generation.model={place}/plain_model"],
        r"must have attention in its U-Net for finetune\.mode joint, got {place}/plain_model ",
    ),
    "tokens that are missing": (
        ["finetune.path={place}/missing.pt"],
        r"finetune\.path must be a folder of results, or .* got {place}/missing\.pt, .* missing$",
    ),
    "tokens of other classes": (
        ["finetune.path={place}/tokens.pt", "finetune.mode=textual_inversion"],
        r"finetune\.path must hold a token for every class, got none for '0', '1', '2', '3' and 6",
    ),
    "tokens without their LoRA": (
        ["finetune.path={place}/tokens.pt"],
        r"must hold LoRA and tokens for finetune\.mode joint, got tokens in .*textual_inversion to",
    ),
    "a token of too many vectors": (
        ["finetune.num_vectors=60"],
        r"finetune\.num_vectors must give a token at most \d+ vectors, .* its 48 tokens, got 60$",
    ),
    "vectors of no token": (
        ["finetune.mode=lora", "finetune.num_vectors=2"],
        r"finetune\.num_vectors and .* left out with finetune\.mode lora, which learns no tokens$",
    ),
    "a LoRA for each class": (
        ["finetune.per_class=true"],
        r"finetune\.per_class must be false unless finetune\.mode is .* share one LoRA$",
    ),
    "nothing to serve": (
        ["devices.generate=none"],
        r"finetune\.path must hold the result .* run online-aug finetune first$",
    ),
    "cache under a file": (
        ["cache.path={place}/file/cache"],
        r"cache path must be .*: .*/file is no dir",
    ),
    "cache in a folder of others": (["cache.path={place}"], r"cache path must be new, empty or a"),
    "data under a file": (["data.root={place}/file/data"], r"data\.root must be a folder in which"),
    "run of others": (
        ["run.dir={place}", "run.name=one_class"],
        r"run directory {place}/one_class must be new, empty or an earlier run",
    ),
    "run of another configuration": (
        ["run.dir={place}", "run.name=older_run", "run.seed=1"],
        r"older_run must hold the same .* run\.seed \(0 there, 1 now\); choose another run\.name",
    ),
    "checkpoint of other classes": (
        ["run.dir={place}", "run.name=other_classes"],
        r"of the same training to be resumed, differs in classes \(label 0 was 'cat'",
    ),
    "checkpoint of divided weights": (
        ["run.dir={place}", "run.name=other_stage"],
        r"same training to be resumed, differs in ZeRO stage \(1 there, 0 now\): choose",
    ),
    "damaged checkpoint": (
        ["run.dir={place}", "run.name=damaged"],
        r"step_00000012 cannot be read \(.+\): remove this folder to go on from the one before$",
    ),
    "emptied cache": (
        ["run.dir={place}", "run.name=emptied"],
        r"cache that this run was served from, of which 5 images were known, got one of 0: put it",
    ),
    "spoilt run": (
        ["run.dir={place}", "run.name=spoilt_run"],
        r"spoilt_run/config\.yaml must be the configuration of a run",
    ),
}
SKIPPED = ["data.source={place}/broken_image", "data.on_bad_image=skip", "--dry-run"]


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


def said_by(launch):
    return Said(launch.wait(), launch.out, launch.err)


def write_images(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((24, 24, 3), 9 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def spoil_models(place, model):
    """Write models cut short, a model without attention, and foreign tokens."""
    for short in (
        copy_with(model, place / "short_model") / "unet",
        write_tiny_vae(place / "short_vae"),
    ):
        (weights,) = short.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
    plain = copy_with(model, place / "plain_model") / "unet"
    (weights,) = plain.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensors[name] for name in tensors if ".to_" not in name}, weights)
    torch.save({"<emu>": torch.zeros(128)}, place / "tokens.pt")
    three = timm.create_model("test_resnet", num_classes=3)
    save_file(three.state_dict(), place / "weights.safetensors")


def spoil(place, config):
    """Folders, models and runs as nobody should have them."""
    (place / "file").write_text("")
    (place / "weights.json").write_text('{"emu": 1}')
    (place / "hosts").write_text("localhost slots=2\nnobody.invalid slots=1\n")
    vit = timm.create_model("test_vit", num_classes=10)
    save_file(vit.state_dict(), place / "vit.safetensors")
    (place / "no_class").mkdir(parents=True)
    write_images(place / "one_class" / "cat", 5)
    for name, dogs in {"empty_class": 0, "one_image": 1, "broken_image": 9}.items():
        write_images(place / name / "cat", 9)
        write_images(place / name / "dog", dogs)
    (place / "broken_image" / "dog" / "3.png").write_bytes(b"no image")
    for split, name in [("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "emu")]:
        write_images(place / "stranger" / split / name, 5)
    write_mnist(place)
    labels = place / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0a")
    for part in ("unet", "vae", "scheduler"):
        (place / "other_model" / part).mkdir(parents=True)
    index = {"unet": [], "vae": [], "scheduler": []}
    (place / "other_model" / "model_index.json").write_text(json.dumps(index))
    (place / "spoilt_model").mkdir()
    (place / "spoilt_model" / "model_index.json").write_text("{")
    (place / "spoilt_run").mkdir()
    (place / "spoilt_run" / "config.yaml").write_text("[")
    spoil_runs(place, load_config(config))


def spoil_runs(place, config):
    """Runs that have stopped after a checkpoint, and cannot go on."""
    marks = {
        "older_run": {},
        "other_classes": {"classes": ["cat"]},
        "other_stage": {checkpoints.RANKS: 2, checkpoints.STAGE: 1},
        "damaged": {},
        "emptied": {},
    }
    for name, other in marks.items():
        path = checkpoints.checkpoint_path(place / name / checkpoints.FOLDER, 12)
        path.mkdir(parents=True)
        (place / name / "config.yaml").write_text(resolved_yaml(config))
        own = checkpoints.made_with(config, class_names=[str(n) for n in range(10)], ranks=1)
        (path / checkpoints.MARKER).write_text(json.dumps({**own, **other}))
        torch.save({"loader": {"position": 5}}, checkpoints.own_state_path(path, 0))
    checkpoints.own_state_path(
        checkpoints.checkpoint_path(place / "damaged" / checkpoints.FOLDER, 12), 0
    ).write_bytes(b"nothing of use")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("material")


@pytest.fixture(scope="module")
def said(tmp_path_factory, place, tiny_model):
    """Run every case; return its output and the folder that it could have written into."""
    folders = {name: tmp_path_factory.mktemp("case") for name in [*CASES, "skipped"]}
    configs = {name: write_config(folder, tiny_model, place) for name, folder in folders.items()}
    spoil(place, configs["run of another configuration"])
    spoil_models(place, tiny_model)
    overrides = {name: case for name, (case, _) in CASES.items()} | {"skipped": SKIPPED}
    commands = [
        [str(configs[name]), f"data.root={place}", *(text.format(place=place) for text in case)]
        for name, case in overrides.items()
    ]
    found = [said_by(Launch("train.py", *command)) for command in commands]
    return dict(zip(configs, zip(found, folders.values(), strict=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_line_and_exit_status_2(name, said, place):
    found, _ = said[name]
    assert found.status == 2, found.err
    (line,) = found.err.splitlines()
    assert re.search(CASES[name][1].replace("{place}", re.escape(str(place))), line), line
    assert line.startswith("error: ")
    assert found.out == ""


@pytest.mark.parametrize("name", CASES)
def test_bad_input_starts_nothing_and_writes_no_result(name, said):
    _, folder = said[name]
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]
    assert processes_of(folder) == []


def test_a_broken_image_is_left_out_and_counted_when_asked(said):
    found, folder = said["skipped"]
    assert found.status == 0, found.err
    assert re.search(r"^data +\d+ train, .* 1 unreadable left out$", found.out, re.MULTILINE)
    assert [path.name for path in folder.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            [],
            "error: the following arguments are required: RECIPE; see online-aug train --help",
        ),
        (["x.yaml", "--seed", "1"], "unrecognized arguments: --seed"),
        (
            ["no/such.yaml"],
            "error: the first argument must be an existing YAML file or the name of a recipe,",
        ),
    ],
)
def test_a_wrong_command_is_one_line(argv, line):
    launch = Launch("train.py", *argv)
    assert launch.wait() == 2
    assert line in launch.err
    assert launch.err.count("\n") == 1


def test_a_spoilt_configuration_file_is_one_line_that_says_where(tmp_path):
    (tmp_path / "spoilt.yaml").write_text("run: {seed: 1\noptim: [")
    launch = Launch("train.py", tmp_path / "spoilt.yaml")
    assert launch.wait() == 2
    assert re.fullmatch(r"error: \S+spoilt\.yaml must be YAML: .* \(line 2.*\)\n", launch.err)
