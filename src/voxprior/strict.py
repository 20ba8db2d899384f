"""What every model of the configuration and of the run cards is made of: strict models, their words, their reading."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voxprior.errors import Refusal

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
ChannelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Zyx = tuple[float, float, float]
ZyxVox = tuple[int, int, int]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Refuses unknown keys and does not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validated(model: type[Model], content: str | dict[str, Any], where: str, advice: str) -> Model:
    """Makes a model of JSON text or of plain data.

    Raises:
        Refusal: `<where>: <path of the key>: <what is wrong>: <advice>`, for the first thing that is wrong.
    """
    try:
        return model.model_validate_json(content) if isinstance(content, str) else model.model_validate(content)
    except ValidationError as error:
        wrong = error.errors()[0]
        said = [where, ".".join(map(str, wrong["loc"])), wrong["msg"], advice]
        raise Refusal(": ".join(part for part in said if part)) from None


def read_model(model: type[Model], path: str | Path, advice: str) -> Model:
    """Reads and checks a JSON file.

    Raises:
        Refusal: missing, no JSON, or not what the model asks for.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: run the step that writes it") from None
    return validated(model, content, str(path), advice)
