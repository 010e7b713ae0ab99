"""Choices, not code: Hydra's groups, composed into the dataclasses of `common.config`.

The only module that knows of Hydra and OmegaConf.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config import Config
from common.errors import UsageError

ConfigStore.instance().store(name="schema", node=Config)


def load(overrides: Sequence[str] = (), *, primary: str = "config") -> Config:
    """Compose a configuration from overrides such as ``"privacy.epsilon=4"``.

    ``primary`` is the file that composition begins with.

    Raises:
        UsageError: for an unknown name, choice or value.
    """
    try:
        with hydra.initialize_config_module("configs", version_base="1.3"):
            return _to_config(hydra.compose(primary, overrides=[_opened(o) for o in overrides]))
    except UsageError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _usage_error(error) from error


def run(
    task: Callable[[Config], int],
    arguments: Sequence[str],
    *,
    program: str,
    primary: str = "config",
) -> int:
    """Run ``task`` once for each configuration that Hydra's command line describes.

    Hydra's own flags (``--help``, ``--cfg job``, ``--multirun``, ``--info``) work. In a
    multirun each job gets ``run_dir/0``, ``run_dir/1``, ... Returns the largest exit code.
    ``primary`` is the file that composition begins with.

    Raises:
        UsageError: for bad input.
    """
    codes: list[int] = []
    errors: list[Exception] = []

    def job(composed: DictConfig) -> None:
        try:
            config = _to_config(composed)
            state = HydraConfig.get()
            if state.mode is RunMode.MULTIRUN and config.run_dir is not None:
                config.run_dir = config.run_dir / str(state.job.num)
            codes.append(task(config))
        except OmegaConfBaseException as error:
            errors.append(_usage_error(error))
        except Exception as error:  # raised here, it would look like one of Hydra's
            errors.append(error)

    flags = _flags(arguments)
    asked = {name for name, value in vars(flags).items() if value}
    if flags.cfg == "job" and asked <= {"cfg", "overrides"}:  # Hydra would show Python objects
        print(dump_yaml(load(flags.overrides, primary=primary)), end="")
        return 0
    decorate = hydra.main(config_path="pkg://configs", config_name=primary, version_base="1.3")
    saved, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with tempfile.TemporaryDirectory() as sweep_dir:  # where Hydra leaves multirun.yaml
            sys.argv = [program, *_in_order(arguments, f"hydra.sweep.dir={sweep_dir}")]
            cast("Callable[[], None]", decorate(job))()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _usage_error(error) from error
    except SystemExit as end:  # so ends --help
        if end.code:
            raise
    finally:
        sys.argv = saved
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if errors:
        raise errors[0]
    return max(codes, default=0)


def _in_order(arguments: Sequence[str], *more: str) -> list[str]:
    """Overrides before flags, as argparse wants them."""
    overrides = [word for word in arguments if word[:1] != "-" and ("=" in word or word[0] == "~")]
    flags = [word for word in arguments if word not in overrides]
    return [*map(_opened, overrides), *more, *flags]


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """What Hydra's parser makes of the command line; without ``cfg`` where it asks for help.

    Raises:
        UsageError: for an unknown flag, in one line and not in argparse's.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return get_args_parser().parse_args(_in_order(arguments))
    except SystemExit as end:
        if end.code:
            complaint = said.getvalue().rpartition("error: ")[2].strip()
            raise UsageError(f"{complaint}; see fedward simulate --help") from None
    return argparse.Namespace(cfg=None)


def _opened(override: str) -> str:
    """Let settings that are tables of a user's own names take new names without Hydra's ``+``."""
    name = override.partition("=")[0]
    opens = any(name == table or name.startswith(f"{table}.") for table in _tables(Config()))
    return f"++{override}" if opens else override


def _tables(group: Any, prefix: str = "") -> Iterator[str]:
    for name, value in vars(group).items():
        if isinstance(value, dict):
            yield prefix + name
        elif dataclasses.is_dataclass(value):
            yield from _tables(value, f"{prefix}{name}.")


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values (paths, enumerations and infinity as text)."""
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return cast("dict[str, Any]", _plain(container))


def dump_yaml(config: Config) -> str:
    """The configuration as YAML that `read_yaml` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def read_yaml(path: Path) -> Config:
    """Read a configuration that a run has stored.

    Raises:
        UsageError: if the file is absent or is not such a configuration.
    """
    try:
        stored = OmegaConf.load(path)
        merged = OmegaConf.merge(OmegaConf.structured(Config), stored)
    except Exception as error:  # OSError, OmegaConf's, PyYAML's and its bare assertions
        text = " ".join(str(error).split()).split(" full_key:")[0]
        raise UsageError(f"{path}: not the configuration of a run ({text})") from error
    return _to_config(cast("DictConfig", merged))


def _to_config(composed: DictConfig) -> Config:
    config = cast("Config", OmegaConf.to_object(composed))
    for name in _unknown_names(config):  # added with "+", which Hydra lets pass
        raise _no_such_setting(name)
    return config


def _unknown_names(group: Any, prefix: str = "") -> Iterator[str]:
    known = {field.name for field in dataclasses.fields(group)}
    for name, value in vars(group).items():
        if name not in known:
            yield prefix + name
        elif dataclasses.is_dataclass(value):
            yield from _unknown_names(value, f"{prefix}{name}.")


def _no_such_setting(name: str) -> UsageError:
    close = difflib.get_close_matches(name, _known_names("", to_dict(Config())), n=1)
    hint = f"did you mean {close[0]}?" if close else "see fedward simulate --help"
    return UsageError(f"{name}: no such setting; {hint}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and math.isinf(value):  # JSON has no word for it
        return "inf"
    return str(value) if isinstance(value, Path) else value


def _known_names(prefix: str, value: Any) -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [
        name
        for key, item in value.items()
        for name in ([prefix] if prefix else []) + _known_names(f"{prefix}.{key}".strip("."), item)
    ]


def _usage_error(error: BaseException) -> UsageError:
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _no_such_setting(unknown.group(1))
    choice = re.search(r"Could not find '([^']+)' Available options in '[^']+': (.*)", text)
    if choice:
        group, _, name = choice.group(1).rpartition("/")
        options = ", ".join(choice.group(2).split(" Config search path")[0].split())
        return UsageError(f"{group}={name}: no such choice; there are {options}")
    if error.__cause__ is not None and text.startswith("Error merging"):
        cause = str(error.__cause__).splitlines()[0]
        return UsageError(f"{text.removeprefix('Error merging override ')}: {cause}")
    strange = re.search(r"LexerNoViableAltException: ([^=]+)=(.*?) \^", text)
    if strange:
        name, value = strange.groups()
        return UsageError(f"{name}={value}: quote this value, {name}=\"'...'\"")
    return UsageError(text.split(" full_key:")[0].split(" See ")[0])
