"""Runs `train.py` for each list of arguments on standard input, each time in a process of its own.

The processes are forks of this one, which has imported what takes seconds to import.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import online_aug.classifier.model
import online_aug.finetuning.run
import online_aug.training.build_loader  # noqa: F401
from online_aug.cli import train
from online_aug.cli.main import run_main


def outcome(argv):
    """Exit status, standard output and standard error of one command."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        child = os.fork()
        if not child:
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
            os._exit(status_of(argv))
        _, status = os.waitpid(child, 0)
        return [os.waitstatus_to_exitcode(status), *(file.read_text() for file in files)]


def status_of(argv):
    sys.argv = ["train.py", *argv]
    try:
        run_main(train.main)
    except SystemExit as error:
        return error.code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    json.dump([outcome(argv) for argv in json.load(sys.stdin)], sys.stdout)
