"""Coordinate checks: whether activations keep their size as width and density change, over a few steps of training."""

from graphgrow.runtime.coordinates.check import coordinates, with_masks
from graphgrow.runtime.coordinates.inputs import text_inputs
from graphgrow.runtime.coordinates.slopes import Coordinates, Over, Point, Scheme, Settings

__all__ = ["Coordinates", "Over", "Point", "Scheme", "Settings", "coordinates", "text_inputs", "with_masks"]
