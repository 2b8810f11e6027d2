"""The guide's pages: short, with examples that run and links that lead somewhere."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from readme_example import blocks
from request_samples import make_context
from run_records import epoch

from online_aug.cli.compare import build_parser as compare_parser
from online_aug.config.loading import RECIPES, load_config
from online_aug.config.schema import fields, method_fields, sections
from online_aug.loader.slots import LEDGER_FOLDER, Kind, LedgerWriter, Slot
from online_aug.methods import Source, find_method, make_method, registry

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
FIRST_PAGE = GUIDE / "YOUR_DATA.md"
LONGEST_FIRST_PAGE, LONGEST_PAGE, LONGEST_EXAMPLE = 100, 130, 30


def text_of(name):
    return (GUIDE / name).read_text(encoding="utf-8")


def recipes():
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks("yaml", page.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_of_the_guide_loads(recipe, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(recipe)
    assert load_config(path, []).data.source == "photos"
    assert yaml.safe_load(recipe)["data"]["image_size"] <= 224


def test_pages_are_short_and_the_first_one_shortest():
    assert len(FIRST_PAGE.read_text(encoding="utf-8").splitlines()) <= LONGEST_FIRST_PAGE
    lengths = {page.name: len(page.read_text(encoding="utf-8").splitlines()) for page in PAGES}
    assert {name for name, lines in lengths.items() if lines > LONGEST_PAGE} == set()


def test_the_index_names_every_page_and_the_readme_names_the_index():
    index = text_of("README.md")
    assert [page.name for page in PAGES if f"({page.name})" not in index] == ["README.md"]
    assert "docs/guide/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def headings(page):
    """Return the anchors of a page, as GitHub makes them of its headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def anchored_links():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for place, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
            yield pytest.param(page, place, anchor, id=f"{page.name}-{place}#{anchor}")


@pytest.mark.parametrize(("page", "place", "anchor"), list(anchored_links()))
def test_every_link_to_a_heading_leads_to_one(page, place, anchor):
    assert anchor in headings(page.parent / place if place else page)


@pytest.fixture
def method_file(tmp_path, monkeypatch):
    """The example of OWN_METHOD.md, saved where the reader works."""
    (source,) = blocks("python", text_of("OWN_METHOD.md"))
    assert len(source.splitlines()) <= LONGEST_EXAMPLE
    (tmp_path / "unsure.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "unsure.py"


def labelled(words):
    """Return a request of the configured method, and the label that its image gets."""
    (settings,) = load_config(RECIPES / "digits_diff_mix.yaml", words).methods
    method, context = make_method(settings), make_context(prompts=("a", "b", "c", "d", "e"))
    rng = np.random.default_rng(0)
    request = method.plan(Source(digest="d", label=4), 0, context, rng)
    image = np.zeros((8, 8, 3), np.uint8)
    return request, method.compose(lambda: image, image, request, context, rng)[1]


@pytest.mark.usefixtures("method_file")
def test_the_method_of_the_guide_plans_within_the_class_and_doubts():
    words = ["method.name=unsure.py:Unsure", "method.doubt=0.5", "method.strength=0.8"]
    request, label = labelled(words)
    assert (request.prompt, request.strength) == ("e", 0.8)
    assert label.tolist() == pytest.approx([0.08, 0.08, 0.08, 0.08, 0.68])
    assert label.dtype == np.float32


def forget():
    for cached in (find_method, method_fields, sections, fields):
        cached.cache_clear()


@pytest.fixture
def installed(method_file, monkeypatch):
    """The same class in a package whose setup.cfg is that of the page."""
    package = method_file.parent / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.move(method_file, package / "unsure.py")
    info = method_file.parent / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (announced,) = blocks("ini", text_of("OWN_METHOD.md"))
    group, _, points = announced.partition("=\n")
    assert group.split() == ["[options.entry_points]", registry.ENTRY_POINTS]
    lines = "".join(f"{line.strip()}\n" for line in points.splitlines())
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{lines}")
    monkeypatch.syspath_prepend(str(method_file.parent))
    forget()
    yield
    sys.modules.pop("my_package.unsure", None)
    sys.modules.pop("my_package", None)
    forget()


@pytest.mark.usefixtures("installed")
def test_the_package_of_the_guide_announces_its_method():
    request, _ = labelled(["method.name=unsure", "method.strength=0.8"])
    assert (request.method, request.strength) == ("unsure", 0.8)


@pytest.mark.parametrize("name", ["two_nodes.sbatch", "fill_two_nodes.sbatch"])
def test_a_batch_script_is_one_that_bash_reads_and_a_page_names(name):
    subprocess.run(["bash", "-n", str(GUIDE / name)], check=True, capture_output=True)
    assert f"({name})" in text_of("SEVERAL_MACHINES.md")


def image_recipe():
    """Return the instructions of the Dockerfile by name, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line]


def test_the_image_copies_what_there_is_and_what_is_not_ignored():
    copied = {name for word, rest in image_recipe() if word == "COPY" for name in rest.split()[:-1]}
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert copied == {name.removeprefix("!") for name in kept if name.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    missing = [f for f in ("setup.cfg", "pyproject.toml", "online_aug", "cache") if f not in copied]
    assert missing == []


def test_the_image_runs_the_quickstart_unless_told_otherwise():
    told = {
        word: json.loads(rest) for word, rest in image_recipe() if word in ("ENTRYPOINT", "CMD")
    }
    assert told["ENTRYPOINT"] == ["online-aug"]
    command, *words = told["CMD"]
    assert command == "compare"
    assert compare_parser().parse_intermixed_args(words).recipe == "quickstart"


def test_the_lines_that_read_a_run_count_its_slots(tmp_path, monkeypatch, capsys):
    (lines,) = blocks("python", text_of("REPORT.md"))
    run = tmp_path / "runs" / "flowers-seed0"
    writer = LedgerWriter(run / LEDGER_FOLDER, 0)
    writer.begin(3, 0)
    slots = [Slot(3, place, place, kind, -1) for place, kind in enumerate((*Kind, Kind.CACHED))]
    writer.add(slots, [slot.kind for slot in slots])
    writer.save()
    (run / "metrics.jsonl").write_text(f"{json.dumps(vars(epoch(3)), default=dict)}\n")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"3 {epoch(3).val_top1} {epoch(3).starved}"
    counts = {"real": 1, "fresh": 1, "cached": 2, "starved": 1, "composed": 1}
    assert last == str(counts)
