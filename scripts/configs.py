"""One frozen dataclass is both a program's configuration and its flags."""

import dataclasses
import sys
from typing import Any, TypeVar

from absl import flags

ConfigT = TypeVar("ConfigT")


def option(default: Any, help: str, choices: tuple[str, ...] | None = None, minimum: float | None = None) -> Any:
    """A field of a configuration with its help text and range.

    Args:
        default: Its value where the flag is not given; its type is the flag's. `dataclasses.MISSING` for a required string.
        help: What it means, for `--help`.
        choices: The strings that are allowed.
        minimum: The smallest number that is allowed.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "minimum": minimum})


def define_flags(config_class: type) -> None:
    """Defines one flag for each field. Call it from a program's entry point only: flags are global to a process."""
    for field in dataclasses.fields(config_class):
        help_text, choices, minimum = (field.metadata[name] for name in ("help", "choices", "minimum"))
        if field.default is dataclasses.MISSING:
            flags.DEFINE_string(field.name, None, help_text, required=True)
        elif choices:
            flags.DEFINE_enum(field.name, field.default, choices, help_text)
        elif isinstance(field.default, bool):
            flags.DEFINE_bool(field.name, field.default, help_text)
        elif isinstance(field.default, int):
            flags.DEFINE_integer(field.name, field.default, help_text, lower_bound=minimum)
        elif isinstance(field.default, float):
            flags.DEFINE_float(field.name, field.default, help_text, lower_bound=minimum)
        else:
            flags.DEFINE_string(field.name, field.default, help_text)
        # absl shows the flags of the module that was started; these are defined here on its behalf.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])


def config_from_flags(config_class: type[ConfigT]) -> ConfigT:
    """The configuration that the parsed flags describe."""
    return config_class(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(config_class)})  # type: ignore[arg-type]
