"""The errors that a reader can act on, in one line: file, value, remedy. Others are bugs."""

import os


class VidlearnError(Exception):
    """Something is wrong that the reader can mend; the text says what and how."""


class ConfigError(VidlearnError):
    """An option, a recipe or the environment asks for something that cannot be."""


class VideoError(VidlearnError):
    """A video file cannot give the frames that were asked for: why, and what to do about it."""

    def __init__(self, path: str | os.PathLike[str], cause: str, remedy: str = "") -> None:
        self.path, self.cause, self.remedy = os.fspath(path), cause, remedy
        # All three are passed on so that the error survives a trip between processes.
        super().__init__(self.path, cause, remedy)

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}." + (f" {self.remedy}" if self.remedy else "")
