"""The README's code blocks, and its example of a method as a reader would try it."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
LONGEST_LINES = 30


def blocks(language, text=README):
    """Return the blocks of code in one language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def write_example(folder):
    """Write the method into a folder; return the words that name it on the command line."""
    (source,) = blocks("python")
    assert len(source.splitlines()) <= LONGEST_LINES
    (folder / "my_method.py").write_text(source)
    return ["method.name=my_method.py:NextClass", "method.step=2"]
