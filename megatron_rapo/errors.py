"""The one kind of error that is the input's fault: shown as a line, without a traceback."""


class InputError(ValueError):
    """Something that the user gave cannot work; the message names it, its value, the reason and the fix."""
