"""Count the files of this project that a reader meets on three ways through the code.

    python benchmarks/paths_through_code.py                # the counts
    python benchmarks/paths_through_code.py --list         # and the files, in the order of calls
    python benchmarks/paths_through_code.py key --list     # one way only

`step` is a training run from the command line to the end of the first optimizer step, `request` an
image in `fill` from its plan to its commit, and `key` a mistyped key up to its error line. A file
counts if one of its functions runs; what runs only while modules are imported does not.
Each way runs in a process of its own, in a temporary folder; processes it starts are not counted.
"""

import argparse
import inspect
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / place) for place in ("online_aug/", "cache/", "train.py"))
SMALL = (
    "data.examples_per_class=1",
    "data.epoch_repeats=1",
    "optim.batch_size=5",
    "run.epochs=1",
    "finetune.steps=1",
    "finetune.batch_size=2",
    "generation.num_inference_steps=2",
    "generation.variants_per_image=1",
)
LIMIT_S = 300


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way through the code, from a command to an event."""

    command: tuple[str, ...]
    target: int
    """Files at most."""
    first: tuple[str, str] | None = None
    """Counting starts when a function of this name in a file below this folder is called."""
    last: tuple[str, str] | None = None
    """The process ends when the function of this name in the file that ends so returns."""


WAYS = {
    "step": Way(
        command=("train.py", "configs/digits_diff_mix.yaml", *SMALL),
        target=65,
        last=("deepspeed/runtime/engine.py", "step"),
    ),
    "request": Way(
        command=("-m", "online_aug", "fill", "configs/digits_diff_mix.yaml", *SMALL),
        target=30,
        first=("online_aug/methods/", "plan"),
        last=("cache/store.py", "put_many"),
    ),
    "key": Way(command=("train.py", "configs/digits_diff_mix.yaml", "optim.batchsize=5"), target=7),
}


@dataclass(kw_only=True)
class Trace:
    """Files of ours in which a function has run, with their functions, in the order of calls."""

    way: Way
    report: Path
    functions: dict[str, list[str]] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        """Count from the beginning if the way names no first function."""
        self.is_counting = self.way.first is None

    def start(self) -> None:
        """Watch this thread and all that are started later."""
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call, or end the process after the last one."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS):
            if (
                code.co_flags & inspect.CO_OPTIMIZED
            ):  # a function, not the body of a module or class
                self._note(code.co_filename.removeprefix(f"{ROOT}/"), frame)
        elif event == "return" and self.is_counting and self.way.last:
            file, name = self.way.last
            if code.co_name == name and code.co_filename.endswith(file):
                self.finish()

    def finish(self) -> None:
        """Write the report and leave at once, with all threads."""
        sys.setprofile(None)
        if os.getpid() == self.process:
            lines = [f"{file}\t{' '.join(names)}" for file, names in self.functions.items()]
            self.report.write_text("\n".join(lines))
        os._exit(0)

    def _note(self, file: str, frame: FrameType) -> None:
        function = frame.f_code.co_qualname
        if not self.is_counting and self.way.first:
            folder, name = self.way.first
            self.is_counting = file.startswith(folder) and function.split(".")[-1] == name
        is_new = self.is_counting and function not in self.functions.get(file, ())
        if is_new and not _is_importing(frame):
            self.functions.setdefault(file, []).append(function)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def run_traced(name: str, report: Path) -> None:
    """Run one way in this process, and end it."""
    import runpy

    way = WAYS[name]
    is_module = way.command[0] == "-m"
    target, *arguments = way.command[is_module:]
    folder = report.parent
    places = [f"{key}={folder / place}" for key, place in PLACES.items()] if name != "key" else []
    sys.argv = [target, *arguments, *places]
    trace = Trace(way=way, report=report)
    trace.start()
    try:
        if is_module:
            runpy.run_module(target, run_name="__main__")
        else:
            runpy.run_path(str(ROOT / target), run_name="__main__")
    except SystemExit:
        if way.last is None:
            trace.finish()
        raise


PLACES = {"data.root": "data", "run.dir": "runs", "cache.path": "cache", "finetune.path": "tuned"}


def files_met(name: str) -> dict[str, str]:
    """Return the files that one way leads through, each with the functions that run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, __file__, name, "--report", str(report)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if not report.exists():
            raise SystemExit(f"{name} ended before its last call:\n{done.stdout}{done.stderr}")
        return dict(line.split("\t") for line in report.read_text().splitlines())


def main() -> None:
    """Print the count of each way, and its files if asked."""
    parser = argparse.ArgumentParser(description="Count the files met on three ways.")
    parser.add_argument("ways", nargs="*", choices=[*WAYS, []], help="all if none is named")
    parser.add_argument("--list", action="store_true", help="print files and functions in order")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.report:
        run_traced(options.ways[0], options.report)
        raise SystemExit(f"{options.ways[0]} ended before its last call")
    for name in options.ways or WAYS:
        found = files_met(name)
        print(f"{name}: {len(found)} files, at most {WAYS[name].target} wanted")
        for file, functions in found.items() if options.list else ():
            print(f"  {file}: {functions}")


if __name__ == "__main__":
    main()
