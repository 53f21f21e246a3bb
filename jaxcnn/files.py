"""The files that commands write their results to."""

from __future__ import annotations

from pathlib import Path


def require_writable(option: str, file: Path | None) -> None:
    """Raises ValueError where the file cannot be written: now, not after minutes of work. Creates it, empty."""
    if file is not None:
        try:
            file.open("a").close()
        except OSError as error:
            raise ValueError(f"{option}: got {file}, required a file that can be written: {error.strerror}") from None
