"""The key-value cache of a layer of compressed attention."""

from .layer import Attended, CompressedKV
from .storage import entry_bytes

__all__ = ["Attended", "CompressedKV", "entry_bytes"]
