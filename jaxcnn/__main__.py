"""`python -m jaxcnn`, and the `jaxcnn` command."""

import io
import sys


def main() -> int:
    """The command line, or one line that says what to install for it."""
    for stream in (sys.stdout, sys.stderr):  # names that an ASCII terminal does not have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from jaxcnn.cli import main

        return main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extras = {"matplotlib": "plot", "tensorboardX": "tensorboard", "grain": "images", "PIL": "images"}
        extra = extras.get(package, "train")
        command = f'pip install "jaxcnn[{extra}]"'
        print(f"jaxcnn: needs the package {error.name}; install it with: {command}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
