"""loractr: one shared click-through-rate model plus a small low-rank adapter per domain.

The public names stand below, one by one. Importing the package is cheap: each name is fetched from
its home on first use, and torch with the first one that needs it.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loractr.artifact import Scorer, load, save
    from loractr.batch import Batch, Route
    from loractr.config import RunConfig, load_config
    from loractr.data.prepare import prepare
    from loractr.data.store import Prepared
    from loractr.errors import LoractrError
    from loractr.evaluation import Metrics, evaluate
    from loractr.model import CTRModel, build
    from loractr.predict import predict
    from loractr.run import run
    from loractr.schema import Division, Field, Label, Schema
    from loractr.stage import Stage
    from loractr.training import History, fit

    __version__: str

__all__ = [
    "Batch",
    "CTRModel",
    "Division",
    "Field",
    "History",
    "Label",
    "LoractrError",
    "Metrics",
    "Prepared",
    "Route",
    "RunConfig",
    "Schema",
    "Scorer",
    "Stage",
    "build",
    "evaluate",
    "fit",
    "load",
    "load_config",
    "predict",
    "prepare",
    "run",
    "save",
]

_HOMES = {
    "loractr.artifact": ("Scorer", "load", "save"),
    "loractr.batch": ("Batch", "Route"),
    "loractr.config": ("RunConfig", "load_config"),
    "loractr.data.prepare": ("prepare",),
    "loractr.data.store": ("Prepared",),
    "loractr.errors": ("LoractrError",),
    "loractr.evaluation": ("Metrics", "evaluate"),
    "loractr.model": ("CTRModel", "build"),
    "loractr.predict": ("predict",),
    "loractr.run": ("run",),
    "loractr.schema": ("Division", "Field", "Label", "Schema"),
    "loractr.stage": ("Stage",),
    "loractr.training": ("History", "fit"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """A package whose functions stay in sight when a submodule of the same name is imported.

    Importing `loractr.predict` or `loractr.run` would otherwise put the module in the place of the
    function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name):
        if name == "__version__":
            return version("loractr")
        if name not in _HOME_OF:
            raise AttributeError(f"module 'loractr' has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
