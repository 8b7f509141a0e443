"""The one family of errors that the science raises; each says what the caller may do next."""

from typing import ClassVar


class ExposureError(Exception):
    """An exposure cannot be processed; the message is for a person on shift.

    Parameters
    ----------
    message : str
        What is wrong, where, and what to do, in one line.

    Attributes
    ----------
    outcome : str
        The word that the exposure's status record carries.
    retriable : bool
        Whether the same input may succeed when it is tried again later.
    stage : str or None
        The stage of the pipeline that raised it; filled in by the pipeline.
    """

    outcome: ClassVar[str] = "failed"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.stage: str | None = None


class InputUnavailable(ExposureError):
    """A file that the event names is not there (yet), or cannot be opened; a retry may help.

    Attributes
    ----------
    retry_after : float or None
        Seconds after which whoever has the file asks us to come again.
    """

    outcome = "input_unavailable"
    retriable = True
    retry_after: float | None = None


class InputRefused(InputUnavailable):
    """Whoever has the file does not hand it out, or hands out what may not be read."""

    retriable = False


class UnusableInput(ExposureError):
    """A file is there but is not an image that can be processed; a retry cannot help."""

    outcome = "failed"


class InvalidEvent(ExposureError):
    """The exposure event itself is wrong: not decodable, a field missing or out of range."""

    outcome = "invalid_event"


class NoTemplate(ExposureError):
    """No template covers enough of the exposure."""

    outcome = "no_template"


class QualityRejected(ExposureError):
    """The pixels were read, but nothing trustworthy can be published from them."""

    outcome = "rejected_quality"


class SubtractionFailed(QualityRejected):
    """An engine could not find a trustworthy matching; another engine may."""


class ArchiveUnavailable(InputUnavailable):
    """An archive did not answer, or not completely, within the deadline; a retry may help."""


class UnexpectedAnswer(ArchiveUnavailable):
    """An archive answered with something else than what was asked for: a page, a damaged file."""


class NotInArchive(NoTemplate):
    """The archive has no such file: a hole in the survey."""


class ForbiddenAddress(NoTemplate):
    """A request, or the redirection of one, would go where the settings do not allow."""


class RequestRefused(NoTemplate):
    """The archive does not accept the request, or its answer is larger than allowed."""
