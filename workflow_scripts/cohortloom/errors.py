"""Errors that a user can cause and mend."""


class UserError(Exception):
    """A mistake in the input, the config or the machine's set-up.

    The message is one line that names the file, the column, the line and the offending value
    (nothing else of the row) and the remedy. The step adapter prints it without a traceback.
    """
