"""How a command ends when it can not do what it was asked."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class CommandError(Exception):
    """The command failed: ``cause`` says why in one line, ``remedy`` what to do about it."""

    exit_code = EXIT_FAILED

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy


class UsageError(CommandError):
    """The command line itself can not be right."""

    exit_code = EXIT_USAGE
