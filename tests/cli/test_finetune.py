"""`online-aug finetune`: what it says before it learns, and what it refuses."""

import pytest
from experiment_samples import make_config

from online_aug.cli.finetune import main
from online_aug.config.loading import resolved_yaml
from online_aug.errors import UserError


@pytest.fixture
def path_of(tmp_path, tiny_model):
    """Write a configuration with these sections; return its path."""

    def write(**sections):
        path = tmp_path / "x.yaml"
        path.write_text(resolved_yaml(make_config(tmp_path, tiny_model, **sections)))
        return str(path)

    return write


def test_a_dry_run_says_what_would_be_learned_and_writes_nothing(path_of, tmp_path, capsys):
    main([path_of(finetune={"steps": 7}), "--dry-run"])
    model, learns, result = capsys.readouterr().out.splitlines()
    assert model.startswith("model      ")
    assert learns == "learns     joint, 7 steps"
    assert result.startswith(f"result     {tmp_path}")
    assert not (tmp_path / "finetuned").exists()


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"finetune": {"enabled": False}}, "got false with diff_mix"),
        ({"method": {"name": "real_guidance"}}, "got true with real_guidance"),
    ],
    ids=["switched off", "a method that takes the model as it is"],
)
def test_a_configuration_that_learns_nothing_is_refused(path_of, sections, part):
    with pytest.raises(UserError, match=f"finetune.enabled must be true.*{part}"):
        main([path_of(**sections), "--dry-run"])
