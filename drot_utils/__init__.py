"""The package under the notebooks: one noun a module, each importing only downwards (see README.md)."""

__version__ = "0.1.0"
