"""Models by name where there is no network: one line that says what to give instead."""

import pytest

from online_aug.diffusion.directory import fetch
from online_aug.errors import UserError

RULE = "generation.model must be a directory, or a hub name that can be reached, got "


def refused(name, download):
    with pytest.raises(UserError) as caught:
        fetch("generation.model", "a directory", name, download)
    return str(caught.value)


def unreachable():
    try:
        raise OSError(-2, "Name or service not known")
    except OSError as error:
        raise ValueError("not cached.\nSee the stack trace above") from error


def test_what_is_downloaded_is_given(tmp_path):
    assert fetch("generation.model", "a directory", "a/b", lambda: str(tmp_path)) == tmp_path


def test_the_first_cause_is_said_and_what_to_give_instead():
    assert refused("them/sd-1.5", unreachable) == (
        f"{RULE}'them/sd-1.5' ([Errno -2] Name or service not known): where there is a network, "
        "hf download them/sd-1.5 --local-dir DIR fetches it; then give that directory"
    )


def test_a_network_that_answers_nothing_is_one_clear_line():
    class Timeout(Exception):
        """Of a network library that knows nothing of the system's errors."""

    def time_out():
        raise Timeout("timed out")

    assert refused("sd", time_out).startswith(f"{RULE}'sd' (timed out): ")


@pytest.mark.parametrize(
    "name", ["/data/model", "./model", "../model", "~/model", "a/b/c", "model/", "", "a b"]
)
def test_what_cannot_be_a_name_is_no_directory_and_nothing_is_asked(name):
    assert refused(name, None) == f"{RULE}{name!r}, which is no directory here"
