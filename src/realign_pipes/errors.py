"""Errors that the user of a run can fix: a parameter, a path, a checkpoint, a data set, a full disk, a second run.

Their message says what is wrong, where, and what to do. The command line prints it alone, without a traceback
(`realign_pipes.cli`). A mistake in code that calls the library, such as tensors of unequal shapes, is not one of them.
"""


class UserError(Exception):
    """Something went wrong that the user can fix."""


class InputError(UserError, ValueError):
    """A parameter, a file or its content cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named, or that a stage needs, does not exist."""
