"""What all configurations share: checked fields, the ranges they use, and paths that do not depend on the
current folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from segshift.runs import InputError, user_path

Device = Literal["auto", "cpu", "cuda", "mps"]
Select = Literal["last", "target", "source", "transferred", "oracle"]
"""Rules to select a checkpoint by: the last step, the last one at which no class was lost on the unlabelled
target (`training.watch`), the best mIoU on source validation, on transferred validation, or on the target's
labels (oracle: not attainable without them)."""
CHECKPOINTS: dict[str, str] = {
    "last": "last",
    "target": "no class lost",
    "source": "best on source",
    "transferred": "best on transferred",
    "oracle": "oracle (not attainable)",
}
"""What tables call the checkpoints that the rules choose."""

# --------------------------------------------------------------------------------------------------- ranges

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of images, draws or processes."""
Workers = Annotated[int, Field(ge=0, le=1024)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Pixels = Annotated[int, Field(ge=1, le=32_768)]
"""A side of a picture."""
MOST_PIXELS = 2**27


def _fits(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"at most {MOST_PIXELS} pixels in all")
    return size


Size = Annotated[tuple[Pixels, Pixels], AfterValidator(_fits)]
"""Height and width in pixels."""
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1000)]
"""A learning rate, or a factor on one."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a term of a loss, or of what is added to it."""

# ---------------------------------------------------------------------------------------------------- paths


class Data(str):
    """A data set, layout:path[:subset], with an absolute path."""


class InputFolder(str):
    """A folder or file that is read, as an absolute path."""


class RunFolder(InputFolder):
    """A training run, or a file of weights: results may be written below a run."""


class HubRun(str):
    """A training run on the Hugging Face hub, hf:user/name[@revision]."""


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _data(text: str) -> Data:
    layout, _, rest = text.partition(":")
    # {out} and the like are filled in later
    if not layout.isidentifier() or not rest or rest.startswith("{"):
        return Data(text)
    path, colon, subset = rest, "", ""
    if ":" in rest and not os.path.exists(os.path.expanduser(rest)):  # a path may hold a colon itself
        path, colon, subset = rest.rpartition(":")
    return Data(f"{layout}:{user_path(path)}{colon}{subset}")


def _path(kind: type[InputFolder]) -> Any:
    return AfterValidator(lambda text: kind(text if text.startswith("{") else user_path(text)))


def _model(name: str) -> str:
    """A local folder, as an absolute path, or a name: of a model on the hub, or `town` always."""
    local = not name.strip() or name.startswith("~") or os.path.isdir(name)
    return user_path(name) if name != "town" and local else name


def _factory(name: str) -> str:
    """[FOLDER/]module:factory, with FOLDER absolute where the module's file lies there or in the current
    one."""
    path, _, factory = name.rpartition(":")
    folder, _, module = path.rpartition("/")
    file = os.path.join(os.path.expanduser(folder), *module.split("."))
    there = module and (os.path.isfile(f"{file}.py") or os.path.isfile(f"{file}/__init__.py"))
    return f"{user_path(folder or '.')}/{module}:{factory}" if there else name


_REPOSITORY = r"[\w.-]+/[\w.-]+"
_FACTORY = re.compile(r"(.*/)?[^\W\d][\w.]*:[^\W\d]\w*")


def _repository(name: str) -> str:
    if not re.fullmatch(_REPOSITORY, name):
        raise ValueError("a repository on the hub as user/name")
    return name


def _predictor(text: str) -> str:
    """A run or a file, hf:user/name[@revision], or [FOLDER/]module:factory where no such path is there."""
    if text.startswith("hf:"):
        if not re.fullmatch(f"hf:{_REPOSITORY}(@.+)?", text):
            raise ValueError("hf:user/name or hf:user/name@revision for a run on the hub")
        return HubRun(text)
    if _FACTORY.fullmatch(text) and not os.path.lexists(os.path.expanduser(text)):
        return _factory(text)
    return text if text.startswith("{") else RunFolder(user_path(text))


def _images(text: str) -> str:
    """A data set, or pictures where no such layout stands before a colon."""
    named = re.match(r"[^\W\d]\w*:", text) and not os.path.lexists(os.path.expanduser(text))
    return _data(text) if named else InputFolder(user_path(text))


def _network(name: str) -> str:
    return f"hf:{_model(name[3:])}" if name.startswith("hf:") else _factory(name)


PathText = Annotated[str, BeforeValidator(_text), AfterValidator(user_path)]
"""A path that is no input, absolute."""
DataText = Annotated[str, BeforeValidator(_text), AfterValidator(_data)]
FolderText = Annotated[str, BeforeValidator(_text), _path(InputFolder)]
ImagesText = Annotated[str, BeforeValidator(_text), AfterValidator(_images)]
"""A data set, or pictures: a folder, or a glob."""
RunText = Annotated[str, BeforeValidator(_text), _path(RunFolder)]
PredictorText = Annotated[str, BeforeValidator(_text), AfterValidator(_predictor)]
"""What predicts: a run or a file of weights as a RunFolder, a HubRun, or a plain text
[FOLDER/]module:factory."""
PredictorsText = Annotated[
    tuple[PredictorText, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str | os.PathLike) else given),
    Field(min_length=1),
]
"""One or more of what predicts; one may stand alone."""
RepositoryText = Annotated[str, AfterValidator(_repository)]
"""A repository on the Hugging Face hub, user/name."""
ModelText = Annotated[str, BeforeValidator(_text), AfterValidator(_model)]
FactoryText = Annotated[str, AfterValidator(_factory)]
NetworkText = Annotated[str, BeforeValidator(_text), AfterValidator(_network)]


def inputs(value: Any) -> Iterator[Data | InputFolder]:
    """Every data set, folder and run that a configuration reads, nested ones too."""
    if isinstance(value, Data | InputFolder):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from inputs(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from inputs(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from inputs(item)


# -------------------------------------------------------------------------------------------------- checking


class Settings:
    """Base of the frozen dataclasses that configure a stage: the annotations of the fields are checked when
    one is made.

    Text is not turned into other types where that loses something, numbers are finite, lists become tuples,
    and relative paths become absolute. Raises: InputError naming the option, what was given and what was
    expected.
    """

    prefix: ClassVar[str] = ""
    """What stands before the options of a nested configuration on the command line, as `network.`."""

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        try:
            checked = _pydantic(type(self)).model_validate(given)  # type: ignore[arg-type]
        except ValidationError as error:
            raise InputError(_sentence(self.prefix, error)) from None
        for name in given:
            object.__setattr__(self, name, getattr(checked, name))


@cache
def _pydantic(kind: type[Settings]) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    types: dict[str, Any] = {name: (hints[name], ...) for name in names}
    return create_model(
        kind.__name__, __config__=ConfigDict(allow_inf_nan=False, protected_namespaces=()), **types
    )


def option(name: str) -> str:
    """A field as its option is typed: `gate.on_failure` is --gate.on-failure."""
    return "--" + name.replace("_", "-")


def _sentence(prefix: str, error: ValidationError) -> str:
    """What is wrong with the first field that is, and what was expected there."""
    problems = error.errors()
    first = problems[0]
    name, *inside = first["loc"]
    places = [str(part) for part in inside if isinstance(part, int)]
    where = option(f"{prefix}{name}") + (f" (value {int(places[0]) + 1})" if places else "")
    expected = " or ".join(dict.fromkeys(_expected(p) for p in problems if p["loc"][0] == name))
    value = first["input"]
    shown = repr(str(value) if isinstance(value, os.PathLike) else value)
    return f"{where} is {shown if len(shown) <= 60 else shown[:57] + '...'}: expected {expected}"


def _expected(problem: Any) -> str:
    limits, kind = problem.get("ctx", {}), problem["type"]
    words = {
        "greater_than_equal": "{ge} or more",
        "greater_than": "more than {gt}",
        "less_than_equal": "at most {le}",
        "less_than": "less than {lt}",
        "literal_error": "{expected}",
        "finite_number": "a finite number",
        "tuple_type": "a list of values",
        "missing": "one value more",
        "too_long": "at most {max_length} values",
        "too_short": "at least {min_length} values",
        "none_required": "none",
        "string_type": "text",
        "float_type": "a number",
        "float_parsing": "a number",
        "dict_type": "names with values",
    }
    if kind in words:
        return words[kind].format(
            **{name: f"{value:g}" if isinstance(value, float) else value for name, value in limits.items()}
        )
    if kind.startswith("int_"):
        return "a whole number"
    if kind.startswith("bool_"):
        return "True or False"
    if kind.startswith("dataclass_"):
        return f"a {limits.get('class_name', 'configuration')}"
    return problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
