import io

import pytest
import torch

from online_aug.records import Served
from online_aug.run_state import EpochTally


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
