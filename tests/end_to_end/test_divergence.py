"""A run that diverges: ended or, by a key, continued without the steps that were not finite."""

import pytest
from tiny_runs import read_metrics, read_summary, run_folder, start

pytestmark = pytest.mark.slow

DIVERGES = (
    *("mixing.starvation=substitute", "mixing.synthetic_probability=0", "optim.lr=1e9"),
    "optim.warmup_epochs=0",
)


def test_steps_that_are_not_finite_are_skipped_counted_and_told(config):
    launch = start(config, "skips", *DIVERGES, "optim.skip_non_finite=true", "run.epochs=1")
    launch.succeed()
    (epoch,) = read_metrics(run_folder(config, "skips"))
    assert 0 < epoch["skipped"] < epoch["step"]
    assert read_summary(run_folder(config, "skips"))["skipped"] == epoch["skipped"]
    assert f"{epoch['skipped']} steps skipped" in launch.out


@pytest.mark.parametrize(
    ("skips", "said"),
    [("true", "20 steps in a row were skipped"), ("false", "the loss has not been finite")],
)
def test_a_run_without_a_finite_step_ends_in_one_line(config, skips, said):
    chosen = ("run.epochs=20", f"optim.skip_non_finite={skips}")
    launch = start(config, f"diverges_{skips}", *DIVERGES, *chosen)
    assert launch.wait() == 2
    (line,) = [line for line in launch.err.splitlines() if line.startswith("error: ")]
    assert f"optim.lr must let training converge, got 1e+09: {said}" in line
    assert "Traceback" not in launch.err
