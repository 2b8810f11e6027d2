"""Recipes on noise and a random diffusion model, and how a study of them is called."""

import re

import pytest
from experiment_samples import CLASS_NAMES, make_config
from safetensors.torch import save_file

from online_aug.classifier.class_names import class_metadata
from online_aug.classifier.model import build_classifier
from online_aug.cli.main import run_command
from online_aug.config.loading import resolved_yaml
from online_aug.config.training import ClassifierConfig
from online_aug.errors import UserError


class StudyCall:
    """Calls a study of a recipe in a folder."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.judge = folder / "judge.safetensors"
        self.out = folder / "out"

    def write(self, **sections):
        """Write the recipe, and weights of a classifier that has learned nothing as the judge."""
        config = make_config(self.folder, self.model, **{"finetune": {"enabled": False}} | sections)
        (self.folder / "recipe.yaml").write_text(resolved_yaml(config))
        classifier = build_classifier(ClassifierConfig(name="test_resnet"), len(CLASS_NAMES))
        save_file(classifier.state_dict(), self.judge, class_metadata(CLASS_NAMES))

    def __call__(self, name, *argv):
        """Run the study and return the text of its answer."""
        recipe = self.folder / "recipe.yaml"
        assert run_command(["study", name, str(recipe), f"--out={self.out}", *argv]) == 0
        return (self.out / f"{name}.md").read_text()

    def refusal(self, name, *argv):
        """Return the line of an error before which nothing was written."""
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(UserError) as caught:
            self(name, *argv)
        assert sorted(self.folder.rglob("*")) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def files(self):
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}


@pytest.fixture
def call(tmp_path, tiny_model):
    """A call of studies; its recipe is Diff-Mix unless `write` makes another."""
    made = StudyCall(tmp_path, tiny_model)
    made.write()
    return made


def share_in(text, row, column):
    """Return a share in percent from a Markdown table, by the start of its row and its column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = lines[0].strip("| ").split(" | ")
    found = next(line for line in lines if re.match(row, line)).strip("| ").split(" | ")
    return float(found[heads.index(column)].split(" ")[0])
