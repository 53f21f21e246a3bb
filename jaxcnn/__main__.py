"""`python -m jaxcnn`, and the `jaxcnn` command."""

import io
import sys

from jaxcnn.extras import to_install


def main() -> int:
    """The command line, or one line that says what to install for it."""
    for stream in (sys.stdout, sys.stderr):  # names that an ASCII terminal does not have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from jaxcnn.cli import main

        return main()
    except ModuleNotFoundError as error:
        print(f"jaxcnn: needs the package {error.name}; install it with: {to_install(error.name)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
