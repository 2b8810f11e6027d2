import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(name, *arguments):
    command = [sys.executable, "-m", f"benchmarks.caching.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_killed_writers_and_readers_lose_nothing_and_leave_nothing_behind():
    done = run("torture", "--kills", "8", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 lost" in done.stdout
    assert "verify: clean" in done.stdout


def test_a_flipped_byte_is_harmless_or_refused_or_detected():
    done = run("flips", "--stride", "1499")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 bad ends" in done.stdout


def test_random_and_mutated_bytes_are_refused_in_words():
    done = run("fuzz", "--count", "2000", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 bugs" in done.stdout
