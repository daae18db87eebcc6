"""The one exception for mistakes that the person at the keyboard can put right."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A wrong input (a file, a size, an option), told in one sentence: what was given and what is needed.

    The command line prints the sentence and leaves with exit code 2; a Python caller may catch it as a
    :class:`ValueError`.
    """
