"""Visual semantic reasoning for image-text matching."""

__version__ = "0.1.0"
