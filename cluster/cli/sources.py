"""Settings of `twinflow serve` from flags, environment and config file, merged and checked.

A flag wins over the environment, the environment over the file, the file over the default. All
that is wrong is reported at once, each complaint naming the place where the value was written.

This is not pydantic-settings, which reads the same three sources: it stops at the first unknown
flag, takes no notice of unknown variables, and does not know where a rejected value came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from twinflow.cluster.cli import config_file, environment
from twinflow.cluster.cli.flags import flag_name
from twinflow.cluster.config import ServeConfig
from twinflow.protos.errors import ConfigError

# Several in one variable, and never shown.
_KEYS = frozenset({"api_key", "admin_token"})
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as somebody wrote it, and where."""

    value: object
    origin: str


def resolve(
    flags: Mapping[str, object], environ: Mapping[str, str], complaints: list[str]
) -> ServeConfig:
    """The configuration that flags, environment and config file amount to.

    Args:
        flags: the values that were given on the command line, by field name; `config` names the
            config file.
        environ: the process environment.
        complaints: what is already known to be wrong; reported together with what is found here.

    Raises:
        ConfigError: lists everything that is wrong.
    """
    found = [*complaints, *environment.unknown_variables(environ)]
    variables = environment.settings(environ)
    settings = _from_file(flags.get("config") or variables.get("TWINFLOW_CONFIG"), found)
    settings |= _from_environment(variables)
    settings |= {
        name: Setting(value, flag_name(name)) for name, value in flags.items() if name != "config"
    }
    try:
        config = ServeConfig.model_validate(
            {name: setting.value for name, setting in settings.items()}
        )
    except ValidationError as error:
        found += [_complaint(detail, settings) for detail in error.errors()]
    if found:
        raise ConfigError(report(found))
    return config


def report(complaints: list[str]) -> str:
    """Complaints as one message, a line each."""
    if len(complaints) == 1:
        return complaints[0]
    return "\n".join(
        [f"{len(complaints)} settings are wrong:", *(f"  {one}" for one in complaints)]
    )


def _from_file(path: object, complaints: list[str]) -> dict[str, Setting]:
    if not path:
        return {}
    try:
        values, unknown = config_file.read(Path(str(path)))
    except ConfigError as error:
        complaints.append(str(error))
        return {}
    complaints += unknown
    return {
        name: Setting(value, f"{path}: {name.replace('_', '-')}") for name, value in values.items()
    }


def _from_environment(variables: Mapping[str, str]) -> dict[str, Setting]:
    settings = {}
    for variable, text in variables.items():
        name = variable.removeprefix(environment.PREFIX).lower()
        if name in ServeConfig.model_fields:
            value = [part.strip() for part in text.split(",")] if name in _KEYS else text
            settings[name] = Setting(value, variable)
    return settings


def _complaint(detail: ErrorDetails, settings: Mapping[str, Setting]) -> str:
    # What is wrong between several settings may be another one's fault than where it showed.
    name = str(detail.get("ctx", {}).get("field", detail["loc"][0]))
    if detail["type"] == "missing":
        return "MODEL: missing; name the directory of the model to serve"
    reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    setting = settings.get(name)
    if setting is None:
        return f"{flag_name(name)} (its default): {reason}"
    if name in _KEYS:
        return f"{setting.origin}: {reason}"
    shown = repr(setting.value)
    if len(shown) > _LONGEST_SHOWN:
        shown = shown[:_LONGEST_SHOWN] + "…"
    return f"{setting.origin} {shown}: {reason}"
