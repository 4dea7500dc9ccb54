"""A zarr store that counts what it hands out."""

from __future__ import annotations

from typing import Any

from zarr.abc.store import SuffixByteRequest
from zarr.storage import WrapperStore


class CountedStore(WrapperStore):  # type: ignore[misc]
    """A store that counts the bytes it hands out, and fetches the end of an object, where shards have their index, only once."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.bytes_read = 0
        self.ends: dict[tuple[str, int], Any] = {}

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return an object or a range of it, or nothing where there is none."""
        end = (key, byte_range.suffix) if isinstance(byte_range, SuffixByteRequest) else None
        if end in self.ends:
            return self.ends[end]
        buffer = await super().get(key, prototype, byte_range)
        if buffer is not None:
            self.bytes_read += len(buffer)
            if end:
                self.ends[end] = buffer
        return buffer
