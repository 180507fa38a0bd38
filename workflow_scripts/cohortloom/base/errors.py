"""What ends a step in one line: a mistake that a user can fix, or a signal."""


class UserError(Exception):
    """A mistake in the input, the config or the machine's set-up.

    The message is one line that names the file, the column, the line and the offending value
    (nothing else of the row) and the remedy. The step adapter prints it without a traceback.
    """


class Interrupted(Exception):
    """The step was asked to stop and did; its message says what was kept and how to go on."""
