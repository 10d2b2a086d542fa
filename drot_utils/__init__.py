"""The package under the notebooks: one noun a module, each importing only downwards (see README.md)."""

import logging

# Each run has a font cache of its own; that it is being made is no news for a notebook.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

__version__ = "0.1.0"
