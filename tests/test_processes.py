"""Processes of ours that start in a folder of the user's."""

import os
import subprocess
import sys

from online_aug.processes import packages_first


def test_they_import_these_packages_even_if_the_folder_has_one_of_that_name(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "__init__.py").write_text("raise RuntimeError('another')")
    program = [sys.executable, "-P", "-c", "import cache; print(cache.Store.__name__)"]
    environment = os.environ | packages_first()
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "Store\n", done.stderr
