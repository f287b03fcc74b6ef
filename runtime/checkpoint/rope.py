"""Rotary embedding parameters, as transformers 4 and 5 write them.

transformers 4: `rope_theta` and `rope_scaling` (kind under `rope_type`, or `type` in old files).
transformers 5: one object `rope_parameters` with `rope_theta` and the scaling.

Reads only; what the parameters do to the frequencies is the model's business.
"""

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.json_file import JsonObject
from twinflow.runtime.models.config import RopeScaling

_MAX_POSITION = 2**31
_KINDS = "default, linear, dynamic, llama3 or yarn"


def read_rope(
    config: JsonObject, max_position: int, default_theta: float = 10_000.0
) -> tuple[float, RopeScaling | None]:
    """The base of the frequencies and the scaling, None for the plain embedding.

    Args:
        config: the top level of `config.json`.
        max_position: its `max_position_embeddings`.
        default_theta: the base if the file states none.

    Raises:
        CheckpointError: an unknown kind, or a key that the kind needs is absent or unusable.
    """
    parameters = config.section("rope_parameters")
    scaling = parameters or config.section("rope_scaling")
    theta = parameters.number("rope_theta", 1.0, 1e12) if parameters else None
    if theta is None:
        theta = config.number("rope_theta", 1.0, 1e12) or default_theta
    for section in (config, scaling):
        if section is not None and section.number("partial_rotary_factor", 0.0, 1.0) not in (
            None,
            1.0,
        ):
            raise section.error("partial_rotary_factor", "1.0 (every element of a head rotates)")
    return theta, _read_scaling(scaling, max_position) if scaling else None


def _read_scaling(section: JsonObject, max_position: int) -> RopeScaling | None:
    key = "rope_type" if "rope_type" in section else "type"
    match section.text(key):
        case "default":
            return None
        case None if not _scales(section):
            return None
        case "linear":
            return RopeScaling(kind="linear", factor=_factor(section))
        case "dynamic":
            return RopeScaling(
                kind="dynamic",
                factor=_factor(section),
                original_max_position=_original(section) or max_position,
            )
        case "llama3":
            return _llama3(section)
        case "yarn":
            return _yarn(section, max_position)
        case _:
            raise section.error(key if key in section else "rope_type", _KINDS)


def _scales(section: JsonObject) -> bool:
    return any(key not in ("rope_theta", "partial_rotary_factor") for key in section)


def _llama3(section: JsonObject) -> RopeScaling:
    low = _required(section, "low_freq_factor")
    high = _required(section, "high_freq_factor")
    if high <= low:
        raise section.error("high_freq_factor", f"more than low_freq_factor ({low:g})")
    original = section.required_integer("original_max_position_embeddings", 1, _MAX_POSITION)
    return RopeScaling(
        kind="llama3",
        factor=_factor(section),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=original,
    )


def _yarn(section: JsonObject, max_position: int) -> RopeScaling:
    if section.boolean("truncate") is False:
        raise section.error("truncate", "true or nothing")
    factor = _factor(section)
    beta_fast = section.number("beta_fast", 1e-3, 1e6) or 32.0
    beta_slow = section.number("beta_slow", 1e-3, 1e6) or 1.0
    if beta_fast < beta_slow:
        raise section.error("beta_fast", f"at least beta_slow ({beta_slow:g})")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position=_original(section) or max_position,
        attention_factor=section.number("attention_factor", 1e-6, 1e6),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        mscale=section.number("mscale", 0.0, 1e6) or 0.0,
        mscale_all_dim=section.number("mscale_all_dim", 0.0, 1e6) or 0.0,
    )


def _factor(section: JsonObject) -> float:
    return _required(section, "factor", low=1.0)


def _original(section: JsonObject) -> int | None:
    return section.integer("original_max_position_embeddings", 1, _MAX_POSITION)


def _required(section: JsonObject, key: str, low: float = 1e-6) -> float:
    value = section.number(key, low, 1e6)
    if value is None:
        raise _missing(section, key)
    return value


def _missing(section: JsonObject, key: str) -> CheckpointError:
    return section.error(key, "a number")
