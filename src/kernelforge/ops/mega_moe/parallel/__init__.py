"""Expert parallelism: rows travel between ranks in waves while others are computed."""

from .errors import MoeCommunicationError, PayloadCorrupted, PeerLost, PeerRefused
from .gradient import mega_moe_over
from .headed import Link
from .session import Options, close, configure

__all__ = [
    "Link",
    "MoeCommunicationError",
    "Options",
    "PayloadCorrupted",
    "PeerLost",
    "PeerRefused",
    "close",
    "configure",
    "mega_moe_over",
]
