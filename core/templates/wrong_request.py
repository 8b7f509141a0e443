"""What the documented functions raise for arguments that make no sense."""

from __future__ import annotations

from core.errors import UnusableInput


class WrongRequest(UnusableInput, ValueError):
    """A function cannot do what it is asked for, wherever that would be: an argument is wrong.

    It is a `ValueError` too, for callers who know of no other. What went wrong on the way (an
    archive that does not answer, a field that it does not have) is no such error: then the
    functions return None.
    """


def whole_number(name: str, value: object, least: int, what: str) -> int:
    """Return a whole number, also where it comes as a float such as 120.0.

    Parameters
    ----------
    name : str
        Of the argument.
    value : object
    least : int
    what : str
        What it should be, for the message.

    Raises
    ------
    WrongRequest
        If it is none, or below ``least``.
    """
    try:
        number = int(value)  # type: ignore[call-overload]
        fits = not isinstance(value, bool | str | bytes) and number == value and number >= least
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise WrongRequest(f"{name} = {value!r} is not {what}")
    return int(number)
