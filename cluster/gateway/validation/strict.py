"""Strict pydantic models, and their errors as ours.

Strict means that nothing is converted: `true` is no integer and `"2"` no number. Bounds are not
checked here, except that an integer fits into 64 bits.
"""

import re
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinflow.protos.errors import InvalidRequest

Int64 = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]

# What of an error's location may be shown: our own field names and indices, not a caller's keys.
_FIELD_NAME = re.compile(r"[a-z_]{1,40}")


class StrictModel(BaseModel):
    """Base of the JSON shapes; fields it does not name are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


ModelT = TypeVar("ModelT", bound=StrictModel)


def require_object(document: object) -> dict[str, object]:
    """The document as a JSON object.

    Raises:
        InvalidRequest: it is a list, a string, a number, a boolean or null.
    """
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return document


def validated(model: type[ModelT], document: dict[str, object]) -> ModelT:
    """Read a JSON object as `model`.

    Raises:
        InvalidRequest: names the first field that is missing or of the wrong type.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [str(part) for part in first["loc"] if _presentable(part)]
    param = ".".join(path[:4]) or None
    if first["type"] == "missing":
        raise InvalidRequest(f"{param} is required.", param)
    raise InvalidRequest(f"{param} has an unusable value: {first['msg']}.", param)


def _presentable(part: int | str) -> bool:
    return isinstance(part, int) or _FIELD_NAME.fullmatch(part) is not None
