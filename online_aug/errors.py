"""The one error a person can cause: a worded line and exit status 2, never a traceback."""


class UserError(ValueError):
    """What the user gave cannot be used: says what, where and what is allowed, in one line."""
