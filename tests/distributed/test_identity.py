"""The rank of a process, by what a launcher set."""

import pytest

from online_aug.distributed.identity import (
    LAUNCH_FOLDER,
    RANK_VARIABLES,
    Identity,
    LaunchedPart,
    check_master,
    identify,
    launched_part,
    speaks_for_node,
)
from online_aug.errors import UserError

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = MASTER | {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
DEEPSPEED = MASTER | {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
OURS = DEEPSPEED | {LAUNCH_FOLDER: "folder"}


@pytest.fixture
def say(monkeypatch):
    """Set what a launcher says in the environment, and nothing else of the kind."""

    def set_variables(variables):
        for name in (*RANK_VARIABLES, LAUNCH_FOLDER, *SRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def launched(rank, local_rank, here, *, is_ours=False):
    return Identity(
        rank=rank,
        world_size=4,
        local_rank=local_rank,
        local_world_size=here,
        is_launched=True,
        is_ours=is_ours,
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Identity()),
        (TORCHRUN, launched(2, 0, 2)),
        (DEEPSPEED, launched(3, 1, 2)),
        (OURS, launched(3, 1, None, is_ours=True)),
    ],
)
def test_a_launcher_says_which_rank_this_is_and_how_many_there_are(say, variables, expected):
    say(variables)
    assert identify() == expected
    assert identify().launched_ranks == (4 if variables else None)


@pytest.mark.parametrize(
    ("variables", "is_first", "is_first_of_node"),
    [
        ({}, True, True),
        (TORCHRUN, False, True),
        (TORCHRUN | {"RANK": "0"}, True, True),
        (DEEPSPEED, False, False),
    ],
)
def test_one_process_of_all_and_one_of_a_node_come_first(
    say, variables, is_first, is_first_of_node
):
    say(variables)
    assert identify().is_first == is_first
    assert identify().is_first_of_node == is_first_of_node


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_launcher_that_sets_too_little_is_refused(say, name):
    say({key: value for key, value in TORCHRUN.items() if key != name})
    with pytest.raises(UserError, match=f"^a launcher must set .*, {name} missing: unset RANK"):
        identify()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_rank_that_is_no_number_is_refused(say, name):
    say(TORCHRUN | {name: "first"})
    with pytest.raises(UserError, match=f"must set {name} to a whole number, got 'first'"):
        identify()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE to a whole number, got 'x': unset"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "RANK below WORLD_SIZE, got 3 of 2: unset"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK below LOCAL_WORLD_SIZE, got 7 of 2, LOCAL_RANK to at"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK to a whole number, got ''"),
        ({"LOCAL_RANK": "9" * 5000}, "LOCAL_RANK to a whole number, got '999"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE to at least 1, got 0"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT to a port, 1 to 65535, got 'x'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT to a port, 1 to 65535, got '70000'"),
        ({"RANK": "abc", "MASTER_PORT": ""}, "RANK to a whole number, got 'abc', MASTER_PORT to"),
    ],
)
def test_variables_that_cannot_be_are_all_named_in_one_line(say, variables, said):
    say(TORCHRUN | variables)
    with pytest.raises(UserError) as caught:
        identify()
    assert str(caught.value).startswith("a launcher must set ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert speaks_for_node()


@pytest.mark.parametrize("address", ["nobody.invalid", "x" * 300])
def test_an_address_that_no_machine_has_is_refused(say, address):
    say(TORCHRUN | {"MASTER_ADDR": address})
    with pytest.raises(UserError, match="MASTER_ADDR to the name or address of .*, got '"):
        check_master()


def test_a_single_rank_asks_no_name_server(say):
    say(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nobody.invalid"})
    check_master()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, LaunchedPart()),
        (TORCHRUN, LaunchedPart(number=2, count=4, local_number=0)),
        (DEEPSPEED, LaunchedPart(number=3, count=4, local_number=1)),
        (SRUN, LaunchedPart(number=3, count=4, local_number=1)),
        (SRUN | TORCHRUN, LaunchedPart(number=2, count=4, local_number=0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, LaunchedPart()),
    ],
    ids=["none", "torchrun", "deepspeed", "srun", "torchrun under srun", "script of sbatch"],
)
def test_a_launcher_says_which_part_of_a_plan_is_this_process_s(say, variables, expected):
    say(variables)
    assert launched_part() == expected


@pytest.mark.parametrize(
    "wrong",
    [{"SLURM_PROCID": "4"}, {"SLURM_PROCID": "x"}, {"SLURM_STEP_NUM_TASKS": "0"}],
)
def test_numbers_of_slurm_that_cannot_be_are_refused(say, wrong):
    say(SRUN | wrong)
    with pytest.raises(UserError, match="^Slurm must set SLURM_PROCID below SLURM_STEP_NUM_TASKS"):
        launched_part()
