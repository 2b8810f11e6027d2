"""The one error a person can cause: a worded line and exit status 2, never a traceback."""


class UserError(ValueError):
    """What the user gave cannot be used: says what, where and what is allowed, in one line."""


def one_line(error: Exception) -> str:
    """What another library's error says, without line breaks; its kind where it says too little."""
    words = " ".join(str(error).split())
    if not words or isinstance(error, KeyError):  # a KeyError says no more than the key
        return f"{type(error).__name__} {words}".rstrip()
    return words
