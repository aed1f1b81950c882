"""How a program ends that verifies: with a verdict, or with a status that cannot be taken for one."""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import app, flags

from scripts.configs import config_from_flags, define_flags

ConfigT = TypeVar("ConfigT")

MARKED, NOT_MARKED, NO_VERDICT = 0, 1, 2


def run_verification(config_class: type[ConfigT], run: Callable[[ConfigT], int]) -> None:
    """The entry point of a program whose exit status is a verdict.

    Args:
        config_class: Its configuration.
        run: What it does; returns `MARKED` or `NOT_MARKED`. Whatever it raises ends the program with status 2.
    """
    define_flags(config_class)
    app.run(lambda argv: exit_status(config_class, run), flags_parser=_parse_flags)


def exit_status(config_class: type[ConfigT], run: Callable[[ConfigT], int]) -> int:
    """Runs inside `app.run`, which would end with status 1 on an exception; here 1 means "not marked"."""
    try:
        return run(config_from_flags(config_class))
    except Exception as error:  # Whatever went wrong, it is not a verdict.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return NO_VERDICT


def concluded(verdict: Any, path: str | None) -> int:
    """Writes a verdict as JSON, prints it for people, and gives the program's exit status.

    Args:
        verdict: What was found.
        path: Where to write it; None: nowhere.
    """
    # Here rather than above: bad flags are told at once, not after the seconds that TensorFlow needs to start.
    from scripts.records import write_json

    if path:
        # Before it is printed: a verdict that could not be written as asked ends with status 2 and says nothing else.
        write_json(pathlib.Path(path), verdict.to_dict())
    print(verdict.summary())
    if not verdict.decided:
        return NO_VERDICT
    return MARKED if verdict.marked else NOT_MARKED


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        surplus = flags.FLAGS(argv)[1:]
        # absl would end with status 0, "marked", on its own flag that only checks the others.
        if not surplus and not flags.FLAGS.only_check_args:
            return list(argv[:1])
        print(
            f"Nothing was verified. Expected --flag=value alone. Received: {surplus or '--only_check_args'}",
            file=sys.stderr,
        )
    except flags.Error as error:
        app.usage(shorthelp=True, detailed_error=error, exitcode=NO_VERDICT)
    except SystemExit:  # --help
        pass
    sys.exit(NO_VERDICT)
