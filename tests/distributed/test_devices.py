import pytest
import torch

from online_aug.config import Config
from online_aug.config.sections import DevicesConfig
from online_aug.distributed.devices import plan_devices
from online_aug.errors import UserError


@pytest.fixture
def plan(monkeypatch):
    """Make the plan of a machine with some GPUs and cores."""

    def make(gpus, cores=8, ranks=None, **devices):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        return plan_devices(DevicesConfig(**devices), cores, ranks=ranks)

    return make


@pytest.mark.parametrize(
    ("gpus", "train", "generate"),
    [
        (0, ("cpu",), ("cpu",)),
        (1, ("cuda:0",), ("cuda:0",)),
        (2, ("cuda:0",), ("cuda:1",)),
        (4, ("cuda:0", "cuda:1", "cuda:2"), ("cuda:3",)),
    ],
)
def test_auto_gives_the_last_gpu_to_the_generator_and_shares_the_only_one(
    plan, gpus, train, generate
):
    found = plan(gpus)
    assert (found.train, found.generate) == (train, generate)


def test_where_nothing_is_generated_every_gpu_trains(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = plan_devices(DevicesConfig(), 8, generates=False)
    assert (found.train, found.generate) == (("cuda:0", "cuda:1"), ())


@pytest.mark.parametrize(("gpus", "generate"), [(0, "cpu"), (2, "cuda:1")])
def test_where_nothing_is_trained_the_generator_has_all_cores(monkeypatch, gpus, generate):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    found = plan_devices(DevicesConfig(), 8, trains=False)
    assert (found.train, found.generate, found.generate_threads) == ((), (generate,), 8)
    assert str(found) == f"generate on {generate} (8 threads)"


@pytest.mark.parametrize(
    ("gpus", "generate", "train"),
    [
        (2, "none", ("cuda:0", "cuda:1")),
        (2, "cpu", ("cuda:0", "cuda:1")),
        (2, "cuda:0", ("cuda:1",)),
        (1, "cuda:0", ("cuda:0",)),
        (4, ["cuda:0", "cuda:2"], ("cuda:1", "cuda:3")),
        (2, ["cuda:0", "cuda:1"], ("cuda:0",)),
        (0, "none", ("cpu",)),
    ],
)
def test_training_takes_what_a_chosen_generator_leaves(plan, gpus, generate, train):
    found = plan(gpus, generate=generate)
    assert found.train == train
    chosen = generate if isinstance(generate, list) else [generate]
    assert found.generate == (() if generate == "none" else tuple(chosen))


def test_chosen_devices_are_taken_as_they_are(plan):
    found = plan(3, train=["cuda:2", "cuda:0"], generate="cuda:1")
    assert (found.train, found.generate) == (("cuda:2", "cuda:0"), ("cuda:1",))


@pytest.mark.parametrize(
    ("gpus", "cores", "train", "generate", "threads"),
    [
        (0, 2, "auto", "auto", (1, 1)),
        (0, 8, "auto", "auto", (4, 4)),
        (0, 7, "auto", "auto", (3, 4)),
        (0, 1, "auto", "auto", (1, 1)),
        (0, 8, "auto", "none", (8, 1)),
        (0, 9, ["cpu", "cpu"], "cpu", (3, 3)),
        (0, 2, ["cpu", "cpu"], "cpu", (1, 1)),
        (0, 8, "auto", ["cpu", "cpu"], (2, 3)),
        (0, 2, "auto", ["cpu", "cpu"], (1, 1)),
        (2, 8, "auto", "auto", (8, 1)),
        (1, 8, "auto", "cpu", (4, 4)),
    ],
)
def test_cores_are_divided_between_those_that_compute_on_them(
    plan, gpus, cores, train, generate, threads
):
    found = plan(gpus, cores, train=train, generate=generate)
    assert (found.train_threads, found.generate_threads) == threads


@pytest.mark.parametrize(
    ("gpus", "devices", "message"),
    [
        (0, {"train": "cuda:0"}, r"devices.train must be a device .* \(cpu\), got 'cuda:0'"),
        (1, {"generate": "cuda:1"}, r"devices.generate must be .* \(cpu, cuda:0\), got 'cuda:1'"),
        (1, {"generate": "gpu"}, r"devices.generate must be .* \(cpu, cuda:0\), got 'gpu'"),
        (2, {"generate": ["cuda:0", "cuda:2"]}, r"devices.generate must be .* got 'cuda:2'"),
        (1, {"generate": ["cuda:0", "cpu"]}, "devices.generate must be all GPUs or all cpu"),
        (1, {"train": ["cuda:0", "cpu"]}, "must be all GPUs or all cpu, got cuda:0, cpu"),
    ],
)
def test_devices_that_are_not_there_are_one_clear_line(plan, gpus, devices, message):
    with pytest.raises(UserError, match=message) as caught:
        plan(gpus, **devices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["train", "generate"])
def test_a_gpu_that_is_named_twice_is_refused_by_the_configuration(key):
    message = f"devices.{key} must name each GPU once, got cuda:0, cuda:1, cuda:0"
    with pytest.raises(ValueError, match=message):
        Config(devices=DevicesConfig(**{key: ["cuda:0", "cuda:1", "cuda:0"]}))
    twice = Config(devices=DevicesConfig(**{key: ["cpu", "cpu"]}))
    assert getattr(twice.devices, key) == ("cpu", "cpu")


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_that_leaves_the_generator_nothing_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        DevicesConfig(share=share)


@pytest.mark.parametrize(
    ("gpus", "generate", "shared"),
    [(1, "auto", True), (2, "auto", False), (0, "auto", False), (2, ["cuda:0", "cuda:1"], True)],
)
def test_a_gpu_that_trains_and_generates_is_shared(plan, gpus, generate, shared):
    found = plan(gpus, generate=generate, share=0.25)
    assert found.is_shared(found.generate[0]) is shared
    assert ("(shared, 25% left to training)" in str(found)) is shared


def test_images_are_planned_for_the_device_that_makes_them_or_else_for_training(plan):
    assert plan(2).generator == "cuda:1"
    assert plan(2, generate="none").generator == "cuda:0"


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        (0, {}, ("cpu",)),
        (0, {"train": ["cpu", "cpu"]}, ("cpu",)),
        (0, {"generate": ["cpu", "cpu"]}, ("cpu", "cpu")),
        (1, {}, ("cuda:0",)),
        (3, {}, ("cuda:2", "cuda:0", "cuda:1")),
        (2, {"train": "cuda:0", "generate": "cpu"}, ("cpu",)),
        (2, {"train": "cpu", "generate": "cuda:1"}, ("cuda:1",)),
    ],
)
def test_the_classes_are_learned_on_every_gpu_of_the_run(plan, gpus, devices, expected):
    assert plan(gpus, **devices).finetune == expected


def test_no_training_device_at_all_is_refused_by_the_configuration():
    with pytest.raises(ValueError, match="at least 1 item"):
        DevicesConfig(train=[])


def test_a_plan_says_who_computes_where(plan):
    assert str(plan(2)) == "train on cuda:0 (8 threads each); generate on cuda:1"
    assert str(plan(3, generate=["cuda:1", "cuda:2"])) == (
        "train on cuda:0 (8 threads each); generate on cuda:1, cuda:2"
    )
    assert str(plan(0, generate="none")) == ("train on cpu (8 threads each); no generator")


@pytest.mark.parametrize(
    ("gpus", "ranks", "devices", "train", "generate"),
    [
        (4, 3, {}, ("cuda:0", "cuda:1", "cuda:2"), ("cuda:3",)),
        (2, 2, {}, ("cuda:0", "cuda:1"), ("cuda:1",)),
        (0, 2, {}, ("cpu", "cpu"), ("cpu",)),
        (2, 3, {"train": "cpu"}, ("cpu", "cpu", "cpu"), ("cuda:1",)),
    ],
)
def test_a_launcher_that_is_not_ours_decides_where_its_ranks_train(
    plan, gpus, ranks, devices, train, generate
):
    found = plan(gpus, ranks=ranks, **devices)
    assert (found.train, found.generate) == (train, generate)


def test_ranks_divide_the_cores_of_their_node(plan):
    found = plan(0, cores=9, ranks=2)
    assert (found.train_threads, found.generate_threads) == (3, 3)


def test_more_ranks_than_gpus_are_refused(plan):
    with pytest.raises(UserError, match="must start at most 2 ranks on this node, .* got 3"):
        plan(2, ranks=3)


def test_each_of_several_processes_that_make_images_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [
        plan_devices(DevicesConfig(), 8, trains=False, number=number).generate for number in (0, 1)
    ]
    assert found == [("cuda:0",), ("cuda:1",)]
    with pytest.raises(UserError, match="at most 2 processes on this machine, .* got number 2"):
        plan_devices(DevicesConfig(), 8, trains=False, number=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as srun --gpus-per-task shows it
    assert plan_devices(DevicesConfig(), 8, trains=False, number=3).generate == ("cuda:0",)
