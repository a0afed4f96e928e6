"""Loggers that import `logging` when they have something to log.

That import takes 4 ms, a tenth of the time to read one blob from a shell, and most
processes never log anything. The loggers have their usual names; a program that uses
`logging` notices no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging  # noqa: TID251  for its types
    from collections.abc import Callable

_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40  # as in `logging`

_configure: Callable[[], None] | None = None


class LateLogger:
    """The part of a `logging.Logger` that is used here."""

    def __init__(self, name: str) -> None:
        """Log as ``name``."""
        self._name = name
        self._logger: logging.Logger | None = None

    def debug(self, message: str, *args: object) -> None:
        """Log a detail that helps to find a mistake; as `logging.Logger.debug`."""
        self._log(_DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        """Log an event that is of interest; as `logging.Logger.info`."""
        self._log(_INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        """Log an event that needs attention; as `logging.Logger.warning`."""
        self._log(_WARNING, message, args)

    def error(self, message: str, *args: object) -> None:
        """Log a failure; as `logging.Logger.error`."""
        self._log(_ERROR, message, args)

    def _log(self, level: int, message: str, args: tuple[object, ...]) -> None:
        if self._logger is None:
            import logging  # noqa: PLC0415, TID251  see the module

            if _configure:
                _configure()
            self._logger = logging.getLogger(self._name)
        self._logger.log(level, message, *args, stacklevel=3)


def configure_with(function: Callable[[], None]) -> None:
    """Call ``function`` before a `LateLogger` logs for the first time.

    A program can so configure `logging` without importing it early. ``function`` may
    be called more than once.
    """
    global _configure  # noqa: PLW0603  there is one configuration of logging in a process
    _configure = function
