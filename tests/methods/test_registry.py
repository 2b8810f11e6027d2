"""Methods that do not come with the package: of a user's file, or announced by another package."""

import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from request_samples import make_context, make_sources

from online_aug.config.loading import config_digest, load_config, resolved_yaml
from online_aug.config.schema import describe, fields, method_fields, sections
from online_aug.errors import UserError
from online_aug.methods import METHODS, find_method, make_method, registry
from online_aug.seeding import numpy_rng

SOURCE = make_sources(3)[2]
NEXT_CLASS = '''
from online_aug.labels import one_hot
from online_aug.methods import Method, MethodSettings
from online_aug.settings import Count


class NextClass(Method):
    """Translate to the class that follows."""

    class Settings(MethodSettings):
        step: Count = 1
        """Classes from the source to the target."""

    def plan(self, source, variant, context, rng):
        target = (source.label + self.settings.step) % context.num_classes
        return self.request(source, variant, context, rng, target_label=target)

    def compose(self, source, generated, request, context, rng):
        return generated, one_hot(request.target_label, context.num_classes)
'''


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty configuration in the working directory."""
    monkeypatch.chdir(tmp_path)
    forget()
    path = Path("empty.yaml")
    path.touch()
    return path


def configured(empty, code, name="NextClass", *overrides):
    Path("mine.py").write_text(code)
    forget()
    return load_config(empty, [f"method.name=mine.py:{name}", *overrides])


def key_of(config):
    method = make_method(config.method)
    return method.plan(SOURCE, 0, make_context(), numpy_rng("test", 0)).key


def test_a_method_of_a_file_plans_and_labels_by_its_own_keys(empty):
    config = configured(empty, NEXT_CLASS, "NextClass", "method.step=3")
    method = make_method(config.method)
    request = method.plan(SOURCE, 0, make_context(), numpy_rng("test", 0))
    assert (request.method, request.source_label, request.target_label) == ("NextClass", 2, 1)
    assert request.prompt == make_context().prompts[1]


def test_a_method_of_a_file_has_its_keys_checked(empty):
    with pytest.raises(UserError, match=r"^method\.step must be a whole number >= 1, got 0$"):
        configured(empty, NEXT_CLASS, "NextClass", "method.step=0")
    with pytest.raises(UserError, match="mine.py:NextClass takes name, weight, step$"):
        configured(empty, NEXT_CLASS, "NextClass", "method.stop=1")


def test_a_method_of_a_file_survives_the_resolved_yaml(empty):
    config = configured(empty, NEXT_CLASS, "NextClass", "method.step=2")
    Path("resolved.yaml").write_text(resolved_yaml(config))
    again = load_config(Path("resolved.yaml"))
    assert (again, config_digest(again)) == (config, config_digest(config))


def test_changed_code_asks_for_other_images_and_the_same_code_for_the_same(empty, tmp_path):
    first = key_of(configured(empty, NEXT_CLASS))
    assert key_of(configured(empty, NEXT_CLASS + "\n# changed\n")) != first
    other = tmp_path / "elsewhere.py"
    other.write_text(NEXT_CLASS)
    assert key_of(load_config(empty, [f"method.name={other}:NextClass"])) == first


def test_methods_of_the_package_have_no_digest_of_their_code():
    assert {method.code_digest for method in METHODS.values()} == {None}


def test_a_method_of_a_file_pickles_to_a_process_that_has_not_imported_it(empty):
    method = make_method(configured(empty, NEXT_CLASS, "NextClass", "method.step=2").method)
    Path("pickled").write_bytes(pickle.dumps(method))
    code = "import pickle; print(pickle.load(open('pickled', 'rb')).settings.step)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert said.stdout == "2\n"


@pytest.mark.parametrize(
    ("code", "name", "line"),
    [
        ("", "NextClass", "method.name must name a class in mine.py, which has none, got"),
        (NEXT_CLASS, "NextClas", "method.name must name a class in mine.py, which has NextClass,"),
        ("x = 1 / 0", "A", r"method.name must name code that can be imported, got mine.py:A: Zero"),
        ("x = (", "A", r"method.name must name code that can be imported, got mine.py:A: Syntax"),
        (
            "raise SystemExit(3)",
            "A",
            "method.name must name code that can be imported, got mine.py",
        ),
        (
            "def A(): ...",
            "A",
            "method.name must name a subclass of online_aug.Method, got mine.py:A,",
        ),
        (
            "class A: ...",
            "A",
            "method.name must name a subclass of online_aug.Method, got mine.py:A,",
        ),
        (
            "from online_aug.methods import Method\nclass A(Method): ...",
            "A",
            "method.name must name a method that defines compose and plan, got mine.py:A",
        ),
        (
            NEXT_CLASS + "\n    Settings = dict",
            "NextClass",
            "method.name must name a method whose Settings are a subclass of",
        ),
        (
            NEXT_CLASS.replace("class NextClass", "class sgd_mix"),
            "sgd_mix",
            "method.name must name a class with a name of its own, got mine.py:sgd_mix",
        ),
    ],
)
def test_a_file_that_holds_no_method_is_one_line(empty, code, name, line):
    with pytest.raises(UserError) as caught:
        configured(empty, code, name)
    (said,) = str(caught.value).splitlines()
    assert said.startswith(line)


def test_an_error_on_import_is_told_with_its_line(empty):
    with pytest.raises(UserError, match=r"division by zero \(mine\.py, line 3\)$"):
        configured(empty, "\n\nx = 1 / 0\n", "A")


def test_a_file_that_does_not_exist_is_one_line(empty):
    with pytest.raises(
        UserError, match="^method.name must name a readable file, got no.py:A: No su"
    ):
        load_config(empty, ["method.name=no.py:A"])


def forget():
    for cached in (find_method, method_fields, sections, fields):
        cached.cache_clear()


@pytest.fixture
def announce(empty, monkeypatch):
    """Announces classes as if installed packages did."""

    def announce(*points):
        made = [EntryPoint(name, value, "online_aug.methods") for name, value in points]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: made)
        forget()

    yield announce
    forget()


def test_a_method_that_a_package_announces_is_found_by_its_name(empty, announce):
    announce(("mixed", "online_aug.methods.diff_mix:DiffMix"))
    config = load_config(empty, ["method.name=mixed", "method.gamma=0.3"])
    assert (config.method.name, config.method.gamma) == ("mixed", 0.3)
    method = make_method(config.method)
    assert (method.name, method.code_digest) == ("mixed", None)  # its code is ours
    assert "mixed: Translate towards any class" in describe()


@pytest.mark.parametrize(
    ("points", "line"),
    [
        (
            [("a", "no.such:A")],
            "method.name must name code that can be imported, got a (no.such",
        ),
        ([("a", "a.b:A"), ("a", "c.d:A")], "method.name must be unique, got a, which is in"),
        (
            [("diff_mix", "a.b:A")],
            "method.name must be unique, got diff_mix, which is in online_aug",
        ),
        ([("a", "online_aug.seeding:seed_of")], "method.name must name a subclass of online_aug."),
    ],
)
def test_an_announced_method_that_cannot_be_used_is_one_line(empty, announce, points, line):
    announce(*points)
    with pytest.raises(UserError) as caught:
        load_config(empty, [f"method.name={points[0][0]}"])
    (said,) = str(caught.value).splitlines()
    assert said.startswith(line)


def test_an_announced_method_that_cannot_be_used_does_not_hurt_the_help(announce):
    announce(("broken", "no.such:A"))
    assert "broken: method.name must name code that can be imported" in " ".join(describe().split())
