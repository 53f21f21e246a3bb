"""`python -m jaxcnn`, and the `jaxcnn` command."""

import sys


def main() -> int:
    """The command line, or one line that says what to install for it."""
    try:
        from jaxcnn.cli import main

        return main()
    except ModuleNotFoundError as error:
        extra = {"matplotlib": "plot", "tensorboardX": "tensorboard"}.get((error.name or "").split(".")[0], "train")
        command = f'pip install "jaxcnn[{extra}]"'
        print(f"jaxcnn: needs the package {error.name}; install it with: {command}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
