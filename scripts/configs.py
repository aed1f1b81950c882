"""One frozen dataclass is both a program's configuration and its flags."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import app, flags

ConfigT = TypeVar("ConfigT")


def option(
    default: Any,
    help_text: str,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    shapes_result: bool = True,
) -> Any:
    """A field of a configuration with its help text and range.

    Args:
        default: Its value where the flag is not given; its type is the flag's. `dataclasses.MISSING` for a required string.
        help_text: What it means, for `--help`.
        choices: The strings that are allowed.
        minimum: The smallest number that is allowed.
        maximum: The largest one.
        shapes_result: Whether another value may give another result; a folder's name does not.
    """
    metadata = {"help": help_text, "choices": choices, "minimum": minimum, "maximum": maximum}
    metadata["shapes_result"] = shapes_result
    return dataclasses.field(default=default, metadata=metadata)


def redefined(base: type, name: str, default: Any, choices: tuple[str, ...] | None = None) -> Any:
    """A field of a base configuration with another default, and other choices if given."""
    metadata = dict(base.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]
    return dataclasses.field(default=default, metadata=metadata | {"choices": choices or metadata["choices"]})


def define_flags(config_class: type) -> None:
    """Defines one flag for each field. Call it from a program's entry point only: flags are global to a process."""
    for field in dataclasses.fields(config_class):
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        bounds = {"lower_bound": field.metadata["minimum"], "upper_bound": field.metadata["maximum"]}
        if field.default is dataclasses.MISSING:
            flags.DEFINE_string(field.name, None, help_text, required=True)
        elif choices:
            flags.DEFINE_enum(field.name, field.default, choices, help_text)
        elif isinstance(field.default, bool):
            flags.DEFINE_bool(field.name, field.default, help_text)
        elif isinstance(field.default, int):
            flags.DEFINE_integer(field.name, field.default, help_text, **bounds)
        elif isinstance(field.default, float):
            flags.DEFINE_float(field.name, field.default, help_text, **bounds)
            # "nan" and "inf" are floats too, and no bound of absl's stops the former.
            flags.register_validator(field.name, math.isfinite, "must be a finite number")
        else:
            flags.DEFINE_string(field.name, field.default, help_text)
        # absl shows the flags of the module that was started; these are defined here on its behalf.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])


def config_from_flags(config_class: type[ConfigT]) -> ConfigT:
    """The configuration that the parsed flags describe."""
    return config_class(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(config_class)})  # type: ignore[arg-type]


def result_settings(config: Any) -> dict[str, Any]:
    """The fields on which the result of a run depends, as JSON-ready values."""
    fields = [field for field in dataclasses.fields(config) if field.metadata["shapes_result"]]
    return {field.name: getattr(config, field.name) for field in fields}


def default_settings(config_class: type) -> dict[str, Any]:
    """What `result_settings` gives for a configuration of defaults alone."""
    fields = [field for field in dataclasses.fields(config_class) if field.metadata["shapes_result"]]
    return {field.name: field.default for field in fields}


def command_line(program: str, config: Any) -> str:
    """What a reader types to get the result again: the flags that differ from the defaults.

    Args:
        program: The module, as `python -m` names it.
        config: Its configuration.
    """
    given = [
        field.name
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING
        or (field.metadata["shapes_result"] and getattr(config, field.name) != field.default)
    ]
    return shlex.join(["python", "-m", program, *(f"--{name}={getattr(config, name)}" for name in sorted(given))])


def run_program(config_class: type[ConfigT], run: Callable[[ConfigT], Any]) -> None:
    """The entry point of a program whose exit status says no more than whether it ran.

    Args:
        config_class: Its configuration.
        run: What it does. A `ValueError` or `OSError` of it is shown in one line, with exit status 1.
    """

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            # `--resume True` would leave "True" here and mean `--resume`, `--resume False` the same.
            raise app.UsageError(
                f"These arguments are no flags. Expected --flag=value. Received: {shlex.join(argv[1:])}"
            )
        try:
            run(config_from_flags(config_class))
        except (ValueError, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)

    define_flags(config_class)
    app.run(main)
