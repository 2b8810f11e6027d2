import io
from collections import Counter

import pytest
import torch

from online_aug.records import Served
from online_aug.run_state import EpochTally, share_out


def through_a_checkpoint(tally):
    file = io.BytesIO()
    torch.save(tally.state_dict(), file)
    file.seek(0)
    return EpochTally.resumed(torch.load(file, weights_only=True))


def test_an_epoch_cut_in_two_has_the_sums_of_a_whole_one():
    steps = [(torch.tensor(3.0), Served(real=2, fresh=1)), (torch.tensor(1.0), Served(starved=3))]
    whole, cut = EpochTally(), EpochTally()
    for loss, served in steps:
        whole.add(loss, served)
        cut.add(loss, served)
        cut = through_a_checkpoint(cut)
    assert cut.mean_loss == whole.mean_loss == 2.0
    assert cut.served == whole.served == Served(real=2, fresh=1, starved=3)
    assert cut.images == 6


def test_the_time_of_earlier_launches_counts():
    tally = EpochTally(wait_s=2.0, earlier_s=100.0)
    tally.started -= 10
    again = through_a_checkpoint(tally)
    assert again.train_s == pytest.approx(110, abs=5)
    assert again.wait_s == 2.0


def test_an_epoch_without_a_step_has_no_loss():
    assert EpochTally().mean_loss == 0.0


def saved(times, fresh):
    served = vars(Served(fresh=fresh, real=1))
    loader = {"epoch": 2, "step": 7, "times_sampled": times, "totals": served}
    return {"epoch": 2, "run": {}, "tally": {"served": served, "loss": 1.5}, "loader": loader}


STATES = [saved({0: 3, 4: 1}, 5), saved({0: 1, 9: 2}, 4)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_what_ranks_counted_adds_up_over_another_number_of_them(ranks):
    found = [share_out(STATES, rank, ranks) for rank in range(ranks)]
    times = sum((Counter(each["loader"]["times_sampled"]) for each in found), Counter())
    assert times == {0: 4, 4: 1, 9: 2}
    for counts in ([e["loader"]["totals"] for e in found], [e["tally"]["served"] for e in found]):
        assert sum(each["fresh"] for each in counts) == 9
        assert sum(each["real"] for each in counts) == 2


def test_every_rank_goes_on_where_the_others_do():
    found = [share_out(STATES, rank, 3) for rank in range(3)]
    assert {(each["epoch"], each["loader"]["step"]) for each in found} == {(2, 7)}


def test_no_rank_gets_more_than_one_above_its_share():
    for rank in range(3):
        times = share_out(STATES, rank, 3)["loader"]["times_sampled"]
        assert all(1 <= count <= 2 for count in times.values())
