"""The packages that only a part of the library needs, and the extra that brings each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

EXTRAS = {"matplotlib": "plot", "tensorboardX": "tensorboard", "grain": "images", "PIL": "images"}  # others: train


def to_install(package: str | None) -> str:
    """The command that installs a package, by the name that it is imported by, with the extra that brings it.

    >>> to_install("grain")
    'pip install "jaxcnn[images]"'
    """
    return f'pip install "jaxcnn[{EXTRAS.get((package or "").partition(".")[0], "train")}]"'


@contextlib.contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Where a package is missing within it, the ModuleNotFoundError says what it is for and how it is installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        hint = f"needs the package {package} for {what}; install it with: {to_install(package)}"
        raise ModuleNotFoundError(hint, name=error.name) from None
