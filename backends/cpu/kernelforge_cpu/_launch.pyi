class Kernel:
    """A loaded kernel; ``function`` is the address of its block-range wrapper."""

    def __init__(self, function: int | None, tensors: int, extents: int, workspace_bytes: int) -> None: ...
    def launch(
        self, pointers: tuple[int, ...], extents: tuple[int, ...], grid: tuple[int, ...], threads: int
    ) -> None: ...
