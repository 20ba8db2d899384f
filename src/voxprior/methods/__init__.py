"""Pretraining methods, one file beside its paper each. METHODS is all there is; adding one is adding a word here."""

from importlib import import_module
from types import ModuleType

METHODS = {
    "anatomask": "voxprior.methods.anatomask",
    "glmae": "voxprior.methods.glmae",
    "byol": "voxprior.methods.byol",
    "mae": "voxprior.methods.mae",
    "pgl": "voxprior.methods.pgl",
    "spark": "voxprior.methods.spark",
}


def load(name: str) -> ModuleType:
    """Imports the method's module, which offers Config, region, Model and accepts."""
    return import_module(METHODS[name])
