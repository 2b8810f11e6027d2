"""A plan that is mostly refused is told, with the reason and what to change."""

import io
import json
from dataclasses import replace

import pytest
from experiment_samples import make_experiment
from rich.console import Console
from run_records import summary, write_run

from online_aug.experiment.foregrounds import ensure_saliency
from online_aug.reporting.html_report import write_report
from online_aug.reporting.refusals import refusal_warning, refused_shares
from online_aug.reporting.tables import GeneratorView, Now, draw_panel, print_summary
from online_aug.request import Counts

SMALL = "saliency: source mask too small"
MOST = {SMALL: 0.8, "saliency: union mask too large": 0.117}


@pytest.fixture
def experiment_of(tmp_path, tiny_model):
    def make(variants=4, **method):
        experiment = make_experiment(
            tmp_path,
            tiny_model,
            finetune={"enabled": False},
            generation={"variants_per_image": variants},
            method={"name": "sgd_mix", "candidates": [2, 4], "strength": 0.5} | method,
            saliency={"method": "spectral_residual"},
        )
        ensure_saliency(experiment)
        return experiment

    return make


def test_the_shares_of_a_plan_are_known_before_anything_is_made(experiment_of):
    experiment = experiment_of(min_source_share=0.9)
    assert refused_shares(experiment, experiment.plan) == {SMALL: 1.0}


def test_a_plan_that_is_made_is_not_told(experiment_of):
    experiment = experiment_of(min_source_share=0.0, max_union_share=1.0)
    assert refused_shares(experiment, experiment.plan) == {}
    assert refusal_warning({}) is None


def test_a_small_plan_says_nothing(experiment_of):
    experiment = experiment_of(variants=1, min_source_share=0.9)
    assert refused_shares(experiment, experiment.plan) == {}


def test_the_warning_names_the_reasons_and_the_keys():
    assert refusal_warning({SMALL: 0.5}) is None
    assert refusal_warning(MOST) == (
        "91.7 % of the planned images are refused (80.0 % saliency: source mask too small, 11.7 % "
        "saliency: union mask too large): change saliency.method, saliency.mask or "
        "method.min_source_share; online-aug study masks shows the foregrounds"
    )


def test_the_panel_says_it_in_its_own_width():
    view = GeneratorView(
        state="waiting",
        images_per_s=3.0,
        generated=14,
        cache_entries=14,
        cache_bytes=100,
        refused_shares=MOST,
    )
    now = Now(
        epoch=0,
        total_epochs=2,
        step_in_epoch=1,
        steps_per_epoch=4,
        loss=1.0,
        images_per_s=None,
        left_s=None,
        served=Counts(real=1),
        generator=view,
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(draw_panel(now))
    assert "92% refused: source mask too small, 14" in console.export_text()


def test_summary_and_report_of_a_run_say_it(tmp_path):
    told = replace(summary(), refused_shares=MOST)
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(told, tmp_path, console)
    assert "91.7 % of the planned images are refused" in console.export_text()
    write_run(tmp_path)
    write_report(tmp_path, summary=told)
    assert "91.7 % of the planned images are refused" in (tmp_path / "report.html").read_text()
    assert "refused" not in json.dumps(summary().made_text)
