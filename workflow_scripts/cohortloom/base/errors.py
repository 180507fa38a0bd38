"""Exceptions that end a step with one line: a mistake that a user can fix, or a signal."""


class UserError(Exception):
    """A mistake in the input, the config or the set-up of the machine.

    The message is one line that names the file, the column, the line, the offending value (nothing else of
    the row) and the remedy. The step adapter prints it without a traceback.
    """


class Interrupted(Exception):
    """The step stopped after a signal; the message says what is saved and how to resume."""
