import io
from collections import Counter
from dataclasses import asdict

import pytest
import torch

from online_aug.distributed.world import World
from online_aug.request import Counts
from online_aug.training.checkpoints import share_out
from online_aug.training.reporter import EpochTally
from online_aug.training.trainer import RunState


def through_a_checkpoint(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_an_epoch_cut_in_two_has_the_mean_loss_of_a_whole_one():
    whole, cut = EpochTally(), EpochTally()
    for loss in (torch.tensor(3.0), torch.tensor(1.0)):
        whole.add(loss)
        cut.add(loss)
        cut = EpochTally(**through_a_checkpoint(cut.state_dict()))
    assert cut.mean_loss == whole.mean_loss == 2.0


def test_the_training_time_of_earlier_launches_is_added():
    tally = EpochTally(wait_s=2.0, earlier_s=100.0)
    tally.started -= 10
    again = EpochTally(**through_a_checkpoint(tally.state_dict()))
    assert again.train_s == pytest.approx(110, abs=5)
    assert again.wait_s == 2.0


def test_an_epoch_without_a_step_has_loss_0():
    assert EpochTally().mean_loss == 0.0


def test_the_state_of_a_run_survives_a_checkpoint():
    state = RunState(wall_s=3.0, best_epoch=1, epoch_start=Counts(real=2, generated=5))
    assert RunState.resumed(through_a_checkpoint(asdict(state))) == state


def saved(times, fresh, *, node=0, generated=0, position=0):
    counts = vars(Counts(fresh=fresh, real=1, generated=generated))
    loader = {"epoch": 2, "step": 7, "times_sampled": times, "counts": counts, "refusals": {}}
    loader |= {"position": position, "position_at_start": position // 2}
    run = {"epoch_start": counts, "best_epoch": 1}
    tally = {"loss": 1.5}
    return {"epoch": 2, "node": node, "run": run, "tally": tally, "loader": loader}


def world_of(rank, local_ranks):
    here = torch.device("cpu")
    return World(rank, len(local_ranks), local_ranks[rank], here, local_ranks=local_ranks)


def shared_out(states, local_ranks):
    return [share_out(states, world_of(rank, local_ranks)) for rank in range(len(local_ranks))]


def counted(parts):
    return sum((Counter(each["loader"]["times_sampled"]) for each in parts), Counter())


STATES = [saved({0: 3, 4: 1}, 5, generated=9), saved({0: 1, 9: 2}, 4)]
TWO_NODES = [
    saved({0: 3}, 5, node=0, generated=9, position=40),
    saved({0: 1}, 4, node=0),
    saved({7: 3}, 3, node=1, generated=5, position=60),
    saved({7: 1, 9: 2}, 2, node=1),
]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_counts_keep_their_sum_over_another_number_of_ranks(ranks):
    found = shared_out(STATES, tuple(range(ranks)))
    assert counted(found) == {0: 4, 4: 1, 9: 2}
    starts = [each["run"]["epoch_start"] for each in found]
    for counts in ([each["loader"]["counts"] for each in found], starts):
        assert sum(each["fresh"] for each in counts) == 9
        assert sum(each["real"] for each in counts) == 2


def test_every_rank_continues_at_the_same_step():
    found = shared_out(STATES, (0, 1, 2))
    assert {(each["epoch"], each["loader"]["step"]) for each in found} == {(2, 7)}


def test_no_rank_gets_more_than_one_above_its_share():
    for each in shared_out(STATES, (0, 1, 2)):
        assert all(1 <= count <= 2 for count in each["loader"]["times_sampled"].values())


def test_as_many_ranks_on_the_same_nodes_keep_their_own_state():
    assert shared_out(TWO_NODES, (0, 1, 0, 1)) == TWO_NODES


@pytest.mark.parametrize("local_ranks", [(0, 0), (0, 1, 2, 0), (0, 1, 0, 1, 2)])
def test_with_as_many_nodes_each_keeps_its_counts_and_its_place_in_its_cache(local_ranks):
    found = shared_out(TWO_NODES, local_ranks)
    nodes = [each["node"] for each in found]
    by_node = [[e for e, n in zip(found, nodes, strict=True) if n == node] for node in (0, 1)]
    assert [counted(parts) for parts in by_node] == [{0: 4}, {7: 4, 9: 2}]
    assert [parts[0]["loader"]["position"] for parts in by_node] == [40, 60]
    assert [sum(e["loader"]["counts"]["generated"] for e in parts) for parts in by_node] == [9, 5]


@pytest.mark.parametrize("local_ranks", [(0,), (0, 1), (0, 0, 0)])
def test_with_another_number_of_nodes_no_count_is_lost(local_ranks):
    found = shared_out(TWO_NODES, local_ranks)
    assert counted(found) == {0: 4, 7: 4, 9: 2}
    assert sum(each["loader"]["counts"]["generated"] for each in found) == 14
    places = [each["loader"]["position"] for each in found if each["node"] != 0]
    assert places in ([], [60, 0])
