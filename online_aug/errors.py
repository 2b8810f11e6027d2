"""What ends a program with a worded line instead of a traceback."""


class UserError(ValueError):
    """What the user gave cannot be used: says what, where and what is allowed, in one line.

    Exit status 2.
    """


class RunError(RuntimeError):
    """What ended the run is no wrong input here, such as a rank on another node. Exit status 1."""


def one_line(error: Exception) -> str:
    """What another library's error says, without line breaks; its kind where it says too little."""
    words = " ".join(str(error).split())
    if not words or isinstance(error, KeyError):  # a KeyError says no more than the key
        return f"{type(error).__name__} {words}".rstrip()
    return words
