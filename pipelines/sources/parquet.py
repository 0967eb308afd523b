"""Images inside Parquet files, as Hugging Face's datasets write them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.preprocess import ImageRefused
from pipelines.sources.base import MAX_IMAGE_BYTES, Entry, Found, Labels, Place, SourceRefused, check_unpacked, told
from pipelines.sources.kinds import of_kind


def open_parquet(place: Place, labels: Labels, _: ExitStack) -> Found:
    names, ignored = of_kind(place, "parquet") if place.is_folder else (list(place.files), [])
    read_group = lru_cache(maxsize=1)(_read_group)  # rows are asked for in order: one row group in memory
    entries: list[Entry] = []
    for name in names:
        file = place.at(name)
        with told(file, "Parquet file"), pq.ParquetFile(file) as parquet:
            column = _image_column(file, parquet.schema_arrow)
            groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
            check_unpacked(file, max((group.total_byte_size for group in groups), default=0))
            lengths = [group.num_rows for group in groups]
            given = None if labels == "none" else _parquet_labels(file, parquet)
        places = ((group, row) for group, length in enumerate(lengths) for row in range(length))
        for index, (group, row) in enumerate(places):
            title = f"{name}/{index:09d}"
            read = partial(_read_row, partial(read_group, file, group, column), row, title)
            entries.append(Entry(title, None if given is None else given[index], read))
    return Found(entries, ignored)


def _image_column(file: Path, schema: pa.Schema) -> str:
    """The leaf that holds the bytes: `image.bytes`, or `image` itself."""
    kind = schema.field("image").type if "image" in schema.names else pa.null()
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if is_struct else kind
    if pa.types.is_binary(content) or pa.types.is_large_binary(content):
        return "image.bytes" if is_struct else "image"
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    what = f"has no column 'image' of struct<bytes: binary, path: string> or of binary, but {found!r}"
    raise SourceRefused(file, what, "rename or convert it")


def _parquet_labels(file: Path, parquet: pq.ParquetFile) -> list[int] | None:
    if "label" not in parquet.schema_arrow.names:
        return None
    kind = parquet.schema_arrow.field("label").type
    if not pa.types.is_integer(kind):
        what = f"has a column 'label' of {str(kind)!r}, not of integers"
        raise SourceRefused(file, what, "convert it, or set labels='none'")
    column = parquet.read(columns=["label"])["label"]
    if column.null_count:
        what = f"has {column.null_count} rows whose label is null"
        raise SourceRefused(file, what, "fill them, or set labels='none'")
    return column.to_pylist()


def _read_group(file: Path, group: int, column: str) -> pa.ChunkedArray:
    with told(file, "Parquet file"), pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column])["image"]


def _read_row(read_group: Callable[[], pa.ChunkedArray], row: int, name: str) -> bytes:
    value = read_group()[row].as_py()
    content = value["bytes"] if isinstance(value, dict) else value
    if content is None:
        raise ImageRefused(name, "has no bytes (null): the images are to be inside the Parquet file")
    if len(content) > MAX_IMAGE_BYTES:
        raise ImageRefused(name, f"is {len(content):,} bytes long: at most {MAX_IMAGE_BYTES:,} are read")
    return content
