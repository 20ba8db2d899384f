"""Pretraining methods, one file beside its paper each. METHODS is all there is; adding one is adding a word here."""

from importlib import import_module
from types import ModuleType

METHODS = {
    "anatomask": "voxprior.methods.anatomask",
    "glmae": "voxprior.methods.glmae",
    "mae": "voxprior.methods.mae",
    "spark": "voxprior.methods.spark",
}


def load(name: str) -> ModuleType:
    """Imports the method's module, which offers Config, region, Model and accepts."""
    return import_module(METHODS[name])
