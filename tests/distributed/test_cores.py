"""The cores of a process: the quota of its cgroup, and what the user wishes."""

import subprocess
import sys

import pytest

from online_aug.cores import SPINS, cpu_quotas, share_cores, usable_cores, wished_threads


def quotas(tmp_path, own, files):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return list(cpu_quotas(tmp_path / "cgroup", tmp_path / "own"))


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, [2.0]),
        ("0::/", {"cpu.max": "max 100000\n"}, []),
        ("0::/job/step", {"job/cpu.max": "150000 100000", "job/step/cpu.max": "max 9"}, [1.5]),
        ("0::/elsewhere", {"cpu.max": "400000 100000"}, [4.0]),
        (
            "3:cpu,cpuacct:/job\n1:name=systemd:/",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            [2.5],
        ),
        ("0::/", {}, []),
    ],
)
def test_the_quota_of_a_cgroup_is_found_in_both_versions(tmp_path, own, files, expected):
    assert quotas(tmp_path, own, files) == expected


def test_a_part_of_a_core_is_a_core(monkeypatch):
    monkeypatch.setattr("online_aug.cores.cpu_quotas", lambda: iter([0.5]))
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("4,2", 4), ("", None), ("0", None), ("many", None)]
)
def test_a_user_may_set_the_threads(text, expected):
    assert wished_threads({"OMP_NUM_THREADS": text}) == expected
    assert wished_threads({}) is None


PAGES = """
import resource, sys
import torch
from online_aug.cores import compute_with
if sys.argv[1:]:
    compute_with(1, sys.argv[1])
for number in range(24):
    if number == 16:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(*device):
    output = subprocess.check_output([sys.executable, "-c", PAGES, *device], text=True)
    return int(output)


def test_a_process_that_computes_on_the_cpu_keeps_the_memory_of_its_tensors():
    assert pages("cpu") * 10 < pages()


def test_a_process_that_computes_on_a_gpu_gives_memory_back():
    assert pages("cuda:0") * 2 > pages()


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
        ({"GOMP_SPINCOUNT": "0"}, {}),
    ],
)
def test_waiting_threads_give_their_core_away_unless_the_user_says_how_they_wait(given, added):
    environment = dict(given)
    share_cores(environment)
    assert environment == given | added


@pytest.mark.slow
def test_a_command_shortens_the_waiting_before_torch_is_loaded():
    script = (
        "import os, sys; import online_aug.cli.main as entry; entry.run_main = lambda _: "
        "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT']); entry.main()"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={}
    )
    assert said.stdout.split() == ["False", SPINS]
