"""Errors that end a program with a line of text instead of a traceback."""


class UserError(ValueError):
    """Input that cannot be used; the text says what, where and what is allowed. Exit status 2.

    The text holds one line for each mistake.
    """


class RunError(RuntimeError):
    """A failure that is no wrong input here, such as a failed rank elsewhere. Exit status 1."""


def one_line(error: Exception) -> str:
    """Return the text of another library's error on one line, with its kind if it says little."""
    words = " ".join(str(error).split())
    if not words or isinstance(error, KeyError):  # a KeyError says no more than the key
        return f"{type(error).__name__} {words}".rstrip()
    return words


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, to be quoted in a message of ours."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
