"""All methods by name, and the `method` section of a configuration, which their settings make up.

A method is one of `METHODS`, an entry point of an installed package in the group
`online_aug.methods`, or a class in a file of the user's, such as `my_method.py:NextClass`.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Annotated, Any

from pydantic import Discriminator, PlainValidator, SerializeAsAny, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from online_aug.errors import UserError, one_line
from online_aug.methods.base import Method, MethodSettings
from online_aug.methods.diff_mix import (
    DaFusion,
    DiffAug,
    DiffGen,
    DiffMix,
    RealGen,
    RealGuidance,
    RealMix,
)
from online_aug.methods.diffusemix import DiffuseMix
from online_aug.methods.paste import Paste
from online_aug.methods.sgd_mix import SgdMix

METHODS: dict[str, type[Method]] = {
    "diff_mix": DiffMix,
    "diff_aug": DiffAug,
    "diff_gen": DiffGen,
    "real_gen": RealGen,
    "real_guidance": RealGuidance,
    "real_mix": RealMix,
    "da_fusion": DaFusion,
    "diffusemix": DiffuseMix,
    "sgd_mix": SgdMix,
    "paste": Paste,
}
"""The methods of this package."""
DEFAULT = "diff_mix"
"""The method of a configuration that names none."""
ENTRY_POINTS = "online_aug.methods"
"""The group in which other packages announce their methods."""


@cache
def find_method(name: str) -> type[Method]:
    """Return the method of a name; a file that the name names is imported, which runs its code.

    Args:
        name: One of `METHODS`, the name of an entry point, or `path/to/file.py:Class`, the path
            relative to the working directory.

    Raises:
        UserError: If there is no such method, two packages have one of this name, or the code that
            defines it cannot be used.
    """
    file, colon, class_name = name.rpartition(":")
    if colon:
        return _usable(name, *_class_in_file(name, Path(file), class_name))
    announced = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    owners = ["online_aug"] * (name in METHODS) + [_package(point) for point in announced]
    if len(owners) > 1:
        raise UserError(f"method.name must be unique, got {name}, which is in {_listed(owners)}")
    if announced:
        return _usable(name, *_class_of_package(name, announced[0]))
    if name not in METHODS:
        raise UserError(
            f"method.name must be one of {', '.join(method_names())}, or a class in a file such as "
            f"my_method.py:NextClass, got {json.dumps(name)}"
        )
    return METHODS[name]


def make_method(settings: MethodSettings) -> Method:
    """Return the configured method."""
    return find_method(settings.name)(settings)


def restore(settings: Mapping[str, Any]) -> Method:
    """Return the method that was pickled in another process."""
    return make_method(find_method(settings["name"]).Settings.model_validate(settings))


def method_names() -> list[str]:
    """List the methods of this and other installed packages."""
    return list(
        dict.fromkeys([*METHODS, *(point.name for point in entry_points(group=ENTRY_POINTS))])
    )


def _class_in_file(name: str, path: Path, class_name: str) -> tuple[Any, bytes]:
    try:
        code = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(
            f"method.name must name a readable file, got {name}: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None
    module = _import_code(name, path, code)
    found = getattr(module, class_name, None)
    if found is None or getattr(found, "__module__", None) != module.__name__:
        classes = [key for key, value in vars(module).items() if _is_own_method(value, module)]
        raise UserError(
            f"method.name must name a class in {path}, which has {_listed(classes) or 'none'}, "
            f"got {name}"
        )
    return found, code


def _import_code(name: str, path: Path, code: bytes) -> ModuleType:
    # The digest makes one module of each content: two files of one name do not meet.
    module = ModuleType(f"online_aug_file_{_digest(code)}")
    module.__file__ = str(path.resolve())
    if module.__name__ in sys.modules:
        return sys.modules[module.__name__]
    sys.modules[module.__name__] = module
    try:
        exec(compile(code, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise _import_error(name, error) from error
    return module


def _class_of_package(name: str, point: EntryPoint) -> tuple[Any, bytes]:
    try:
        found = point.load()
        code = Path(inspect.getfile(found)).read_bytes()
    except (Exception, SystemExit) as error:
        raise _import_error(f"{name} ({_package(point)}, {point.value})", error) from error
    return found, code


def _usable(name: str, found: Any, code: bytes) -> type[Method]:
    if not (isinstance(found, type) and issubclass(found, Method)):
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise UserError(
            f"method.name must name a subclass of online_aug.Method, got {name}, which is {kind}"
        )
    if missing := sorted(found.__abstractmethods__):
        raise UserError(
            f"method.name must name a method that defines {_listed(missing)}, got {name}"
        )
    if not issubclass(found.Settings, MethodSettings):
        raise UserError(
            "method.name must name a method whose Settings are a subclass of "
            f"online_aug.methods.MethodSettings, got {name}"
        )
    if found.__name__ in METHODS and ":" in name:
        raise UserError(f"method.name must name a class with a name of its own, got {name}")
    if found not in METHODS.values():
        found.code_digest = _digest(code)
    return found


def _import_error(name: str, error: BaseException) -> UserError:
    said = one_line(error) if isinstance(error, Exception) else ""
    return UserError(
        f"method.name must name code that can be imported, got {name}: "
        f"{type(error).__name__}: {said}{_place_of(error)}"
    )


def _place_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError):  # its text says where
        return ""
    frames = extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if Path(frame.filename).is_file()), None)
    return "" if place is None else f" ({Path(place.filename).name}, line {place.lineno})"


def _is_own_method(value: Any, module: ModuleType) -> bool:
    is_method = isinstance(value, type) and issubclass(value, Method)
    return is_method and value.__module__ == module.__name__


def _digest(code: bytes) -> str:
    return hashlib.blake2b(code, digest_size=16).hexdigest()


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


ONE, SEVERAL = "<one>", "<several>"
"""Tags of the two forms of `method`; part of the place that pydantic gives to a mistake."""


def _with_own_settings(value: Any, info: ValidationInfo) -> MethodSettings:
    if isinstance(value, MethodSettings):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("section_type", "must be a section")
    named = {"name": DEFAULT, **value}
    if not isinstance(named["name"], str):
        named = {"name": named["name"]}  # refused by any settings
        settings: type[MethodSettings] = MethodSettings
    else:
        settings = find_method(named["name"]).Settings
    if info.mode == "json":  # a list may stand for a tuple, but not 1 for true
        return settings.model_validate_json(json.dumps(named), strict=True)
    return settings.model_validate(named)


_Settings = Annotated[SerializeAsAny[MethodSettings], PlainValidator(_with_own_settings)]
MethodSection = Annotated[
    Annotated[_Settings, Tag(ONE)] | Annotated[tuple[_Settings, ...], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else ONE),
]
"""The settings of one method, or of several, each checked by the class that its name stands for."""


def with_presets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the presets of the configured method; a file and the command line win over them.

    A method that shares the run with others brings no presets.

    Args:
        values: Sections by name; not checked yet, so anything may stand in the place of one.
    """
    presets = _known(values.get("method")).presets
    filled = {name: _filled(values.get(name, {}), keys) for name, keys in presets.items()}
    return {**values, **filled}


def keep_keys_of(section: Any, name: str) -> Any:
    """Leave out the keys of a `method` section that its method has, but the method `name` has not.

    Args:
        section: Not checked yet; a list, or a section for the same method, stays as it is.
        name: The method for which the section is to be used.
    """
    own, other = _known(section).Settings.model_fields, _known({"name": name}).Settings.model_fields
    if not isinstance(section, dict) or name == section.get("name", DEFAULT):
        return section
    return {key: value for key, value in section.items() if key in other or key not in own}


def _known(section: Any) -> type[Method]:
    name = section.get("name", DEFAULT) if isinstance(section, dict) else DEFAULT
    try:
        return find_method(name if isinstance(name, str) else DEFAULT)
    except UserError:  # told when the section is checked
        return METHODS[DEFAULT]


def _filled(section: Any, preset: Mapping[str, Any]) -> Any:
    return {**preset, **section} if isinstance(section, dict) else section
