"""Errors that end a program with a line of text instead of a traceback."""

import unicodedata


class UserError(ValueError):
    """Input that cannot be used; the text says what, where and what is allowed. Exit status 2.

    The text holds one line for each mistake.
    """


class PassingError(UserError):
    """A failure of something outside that may be over at the next try, such as a busy server."""


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
    # PyTorch goes on with how to run what a file brings.
    return lines[0].partition(" This file can still")[0] if lines else type(error).__name__


def escaped(text: str) -> str:
    r"""Write the characters that would steer a terminal, or are no text, as backslash codes.

    Names of files and what a person types come from anywhere: they may hold escape sequences, or
    bytes that are no UTF-8, which Python keeps as lone surrogates.

    Example:
        >>> escaped("caf\udce9 \x1b[31m")
        'caf\\xe9 \\x1b[31m'
    """
    return "".join(_code(letter) if _is_unsafe(letter) else letter for letter in text)


def _is_unsafe(letter: str) -> bool:
    # Control characters, surrogates, line separators, and marks that turn the order of letters.
    kind = unicodedata.category(letter)
    return kind in ("Cc", "Cs", "Zl", "Zp") or "\u202a" <= letter <= "\u2069" and kind == "Cf"


def _code(letter: str) -> str:
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
