"""Every kind of source gives back what was put into it, in one order, with its labels."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.errors import PreflightError
from pipelines.preprocess import ImageRefused, decode
from pipelines.sources import Entry, Format, Ignored, Source, SourceRefused, content_digest, entry_digest, open_source

Files = dict[str, bytes]

# In no order, to see that one is made: byte order puts B before a, and ä last.
FILES: Files = {name: name.encode() for name in ("b/dog_2.PNG", "a/cat_1.jpg", "ä_3.webp", "B_0.tiff", "a/x/cat_9.gif")}
ORDER = ["B_0.tiff", "a/cat_1.jpg", "a/x/cat_9.gif", "b/dog_2.PNG", "ä_3.webp"]
LABELS = {
    "folder": [None, "a", "a/x", "b", None],
    "prefix": ["B", "cat", "cat", "dog", "ä"],
    "none": [None] * 5,
}
OTHERS: Files = {"notes.txt": b"-", "a/Thumbs.db": b"-", ".hidden.png": b"-", "__MACOSX/a/cat_1.jpg": b"-"}


def digest_of_source(source: Source) -> str:
    return content_digest(source.format, (entry_digest(entry, entry.read()) for entry in source.entries()))


def write_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            archive.mkdir(folder)
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Files, *, dot: str = "") -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files}):
            member = tarfile.TarInfo(f"{dot}{folder}" or "./")
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(dot + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


WRITERS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lambda path, files: write_folder(path / "images", files),
    "zip": lambda path, files: write_zip(path / "images.zip", files),
    "tar": lambda path, files: write_tar(path / "images.tar", files),
    "tar with ./": lambda path, files: write_tar(path / "images.tar", files, dot="./"),
    "tar.gz": lambda path, files: write_tar(path / "images.tar.gz", files),
    "tgz": lambda path, files: write_tar(path / "images.TGZ", files),
}


@pytest.fixture(autouse=True)
def _spool_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def contents(source: Source) -> dict[str, Any]:
    return {entry.name: entry.read() for entry in source.entries()}


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def assert_holds(source: Source, images: np.ndarray, labels: list[int] | None) -> None:
    read = [entry.read() for entry in source.entries()]
    assert all(isinstance(array, np.ndarray) and array.dtype == np.uint8 for array in read)
    np.testing.assert_array_equal(np.stack(read), images)  # type: ignore[arg-type]
    assert [entry.label for entry in source.entries()] == (labels or [None] * len(images))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("labels", LABELS)
def test_files_come_back_in_the_order_of_their_names_bytes(tmp_path: Path, kind: str, labels: Any) -> None:
    with open_source(WRITERS[kind](tmp_path, FILES | OTHERS), labels=labels) as source:
        assert source.format == ("tar" if kind.startswith("t") else kind)
        assert contents(source) == FILES
        assert [entry.name for entry in source.entries()] == ORDER
        assert [entry.label for entry in source.entries()] == LABELS[labels]


@pytest.mark.parametrize("kind", WRITERS)
def test_files_that_are_no_images_are_counted_and_named(tmp_path: Path, kind: str) -> None:
    with open_source(WRITERS[kind](tmp_path, FILES | OTHERS)) as source:
        hidden = "__MACOSX" if kind == "folder" else "__MACOSX/a/cat_1.jpg"
        assert source.ignored == Ignored(4, (".hidden.png", hidden, "a/Thumbs.db", "notes.txt"))


def test_of_many_ignored_files_the_first_five_are_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "images", FILES | {f"{index}.txt": b"" for index in range(9)})
    with open_source(path) as source:
        assert source.ignored == Ignored(9, ("0.txt", "1.txt", "2.txt", "3.txt", "4.txt"))


def test_an_entry_decodes_to_the_image_that_was_saved(tmp_path: Path) -> None:
    image = pixels(6, 5, 3)
    Image.fromarray(image).save(tmp_path / "x.png")
    (entry,) = open_source(tmp_path).entries()
    content = entry.read()
    assert isinstance(content, bytes)
    np.testing.assert_array_equal(np.asarray(decode(content, name=entry.name, channels=3)), image)


def test_a_compressed_tar_leaves_nothing_behind_and_never_a_member(tmp_path: Path) -> None:
    with open_source(WRITERS["tar.gz"](tmp_path, FILES)) as source:
        assert contents(source) == FILES
        assert list((tmp_path / "spool").iterdir()) == []  # one file, which has lost its name already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.tar.gz", "spool"]


def test_a_closed_source_holds_no_file_open(tmp_path: Path) -> None:
    before = open_files()
    for kind in WRITERS:
        with open_source(WRITERS[kind](tmp_path, FILES)):
            pass
    assert open_files() == before


def test_a_refused_source_holds_no_file_open(tmp_path: Path) -> None:
    path = WRITERS["tar.gz"](tmp_path, {"../x.png": b""})
    before = open_files()
    with pytest.raises(SourceRefused):
        open_source(path)
    assert open_files() == before


def test_a_link_to_a_file_inside_the_folder_is_that_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", {"a/1.png": b"one"})
    (tmp_path / "images" / "b.png").symlink_to("a/1.png")
    with open_source(tmp_path / "images") as source:
        assert contents(source) == {"a/1.png": b"one", "b.png": b"one"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [[3, 1, 2, 0], None])
def test_the_evaluators_npz_comes_back(tmp_path: Path, channels: int, labels: list[int] | None) -> None:
    images = pixels(4, 6, 5, channels)
    np.savez(tmp_path / "x.npz", images, *([] if labels is None else [np.array(labels, np.int32)]))
    with open_source(tmp_path / "x.npz") as source:
        assert source.format == "npz"
        assert [entry.name for entry in source.entries()] == [f"arr_0/{index:09d}" for index in range(4)]
        assert_holds(source, images, labels)


def test_what_is_read_belongs_to_the_reader_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pixels(1, 4, 4, 3))
    (entry,) = open_source(tmp_path / "x.npz").entries()
    first = entry.read()
    assert isinstance(first, np.ndarray)
    first[:] = 0
    np.testing.assert_array_equal(entry.read(), pixels(1, 4, 4, 3)[0])


def as_record(image: np.ndarray) -> bytes:
    return image.transpose(2, 0, 1).tobytes()  # CIFAR keeps one colour after the other


def test_cifar_10s_binary_files_come_back(tmp_path: Path) -> None:
    images, labels = pixels(6, 32, 32, 3), [9, 0, 3, 3, 1, 5]
    records = [bytes([label]) + as_record(image) for image, label in zip(images, labels, strict=True)]
    write_folder(tmp_path, {"data_batch_1.bin": b"".join(records[:4]), "test_batch.bin": b"".join(records[4:])})
    write_folder(tmp_path, {"batches.meta.txt": b"airplane\n", "readme.html": b""})
    with open_source(tmp_path) as source:
        assert source.format == "cifar-binary"
        assert source.ignored.first == ("batches.meta.txt", "readme.html")
        assert [entry.name for entry in source.entries()][3:5] == [
            "data_batch_1.bin/000000003",
            "test_batch.bin/000000000",
        ]
        assert_holds(source, images, labels)
    with open_source(tmp_path / "test_batch.bin") as source:
        assert_holds(source, images[4:], labels[4:])


def test_cifar_100s_binary_files_come_back_with_the_fine_label(tmp_path: Path) -> None:
    images = pixels(2, 32, 32, 3)
    records = bytes([19, 99]) + as_record(images[0]) + bytes([0, 7]) + as_record(images[1])
    (tmp_path / "train.bin").write_bytes(records)
    with open_source(tmp_path) as source:
        assert_holds(source, images, [99, 7])


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cifars_pickles_come_back(tmp_path: Path, protocol: int, order: Any) -> None:
    images, labels = pixels(3, 32, 32, 3), [9, 0, 3]
    data = np.array([np.frombuffer(as_record(image), np.uint8) for image in images], order=order)
    batch = {b"batch_label": b"1 of 1", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * 3}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    with open_source(tmp_path) as source:
        assert source.format == "cifar-pickle"
        assert_holds(source, images, labels)


def test_a_pickle_as_python_2_wrote_it_comes_back(tmp_path: Path) -> None:
    image = pixels(1, 32, 32, 3)[0]
    content = as_record(image)
    # By hand, after pickletools' opcodes: {"data": array, "fine_labels": [42]} with byte strings, protocol 2.
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    filled = array + b"(K\x01K\x01M\0\x0c\x86" + dtype + b"\x89T\0\x0c\0\0" + content + b"tb"
    (tmp_path / "train").write_bytes(b"\x80\x02}(U\x04data" + filled + b"U\x0bfine_labels]K*au.")
    with open_source(tmp_path) as source:
        assert_holds(source, image[None], [42])


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_pairs_come_back(tmp_path: Path, packed: bool) -> None:
    images, labels = pixels(5, 7, 6), np.array([4, 0, 9, 1, 1], np.uint8)
    pack, gz = (gzip.compress, ".gz") if packed else (bytes, "")
    for of, rows in {"t10k": slice(0, 2), "train": slice(2, 5)}.items():
        (tmp_path / f"{of}-images-idx3-ubyte{gz}").write_bytes(pack(idx(images[rows])))
        (tmp_path / f"{of}-labels-idx1-ubyte{gz}").write_bytes(pack(idx(labels[rows])))
    with open_source(tmp_path) as source:
        assert source.format == "idx"
        assert source.entries()[2].name == f"train-images-idx3-ubyte{gz}/000000000"
        assert_holds(source, images[..., None], labels.tolist())


def write_parquet(path: Path, column: pa.Array, labels: list[int] | None, **options: Any) -> None:
    columns = {"image": column} | ({} if labels is None else {"label": pa.array(labels)})
    pq.write_table(pa.table(columns), path, **options)


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
@pytest.mark.parametrize("labels", [[3, 1, 4, 1, 5], None])
def test_parquet_comes_back(tmp_path: Path, kind: str, labels: list[int] | None) -> None:
    images = [name.encode() for name in "abcde"]
    if kind == "struct":
        fields = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        column = pa.array([{"bytes": image, "path": None} for image in images], fields)
    else:
        column = pa.array(images, getattr(pa, kind)())
    write_parquet(tmp_path / "x.parquet", column, labels, row_group_size=2)
    with open_source(tmp_path / "x.parquet") as source:
        assert [entry.read() for entry in source.entries()] == images
        assert [entry.label for entry in source.entries()] == (labels or [None] * 5)
        assert source.entries()[3].name == "x.parquet/000000003"


def test_a_folder_of_parquet_files_is_read_in_their_order(tmp_path: Path) -> None:
    for shard in (1, 0):
        (tmp_path / "data").mkdir(exist_ok=True)
        write_parquet(tmp_path / "data" / f"train-{shard}.parquet", pa.array([b"%d" % shard]), [shard])
    (tmp_path / "README.md").write_text("-")
    with open_source(tmp_path) as source:
        assert source.format == "parquet"
        assert contents(source) == {"data/train-0.parquet/000000000": b"0", "data/train-1.parquet/000000000": b"1"}
        assert source.ignored == Ignored(1, ("README.md",))


def test_a_row_group_is_read_once_for_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "x.parquet", pa.array([b"%d" % row for row in range(6)]), None, row_group_size=3)
    read: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **more: read.append(group) or read_row_group(self, group, **more),
    )
    with open_source(tmp_path / "x.parquet") as source:
        assert read == []
        assert [entry.read() for entry in source.entries()] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert read == [0, 1]


def test_labels_that_are_not_wanted_are_dropped(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pixels(2, 4, 4, 3), np.array([1, 0]))
    write_parquet(tmp_path / "x.parquet", pa.array([b"1"]), [3])
    for name in ("x.npz", "x.parquet"):
        with open_source(tmp_path / name, labels="none") as source:
            assert {entry.label for entry in source.entries()} == {None}


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"format": "rar"}, "format='rar'.*format is auto, folder, zip"),
        ({"labels": "names"}, "labels='names'.*labels is folder, prefix, none"),
        ({"labels": "prefix"}, "labels='prefix': npz has labels of its own"),
    ],
)
def test_a_choice_that_is_none_is_refused(tmp_path: Path, choice: dict[str, Any], complaint: str) -> None:
    np.savez(tmp_path / "x.npz", pixels(2, 4, 4, 3))
    with pytest.raises(ValueError, match=complaint):
        open_source(tmp_path / "x.npz", **choice)


def test_what_is_named_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    WRITERS["zip"](tmp_path, FILES).rename(tmp_path / "download")
    with open_source(tmp_path / "download", format="zip") as source:
        assert contents(source) == FILES


def test_a_folder_of_two_kinds_is_read_as_the_one_that_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "both", {"1.png": b"1"})
    write_parquet(tmp_path / "both" / "x.parquet", pa.array([b"2"]), None)
    for kind, content in {"folder": b"1", "parquet": b"2"}.items():
        with open_source(tmp_path / "both", format=kind) as source:  # type: ignore[arg-type]
            assert [entry.read() for entry in source.entries()] == [content]
            assert source.ignored.count == 1


def test_refusals_survive_the_way_between_processes_and_end_a_command_as_preflight() -> None:
    refused = pickle.loads(pickle.dumps(SourceRefused(Path("a\nb.zip"), "is no whole zip archive", "fetch it again")))
    assert isinstance(refused, PreflightError)
    assert str(refused) == r"'a\nb.zip' is no whole zip archive: fetch it again"
    assert (refused.path, refused.exit_code) == (Path("a\nb.zip"), 3)


def digest_of(path: Path, **choices: Any) -> str:
    with open_source(path, **choices) as source:
        return digest_of_source(source)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_copy_has_the_same_digest_in_whatever_order_it_was_written(tmp_path: Path, kind: str) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = WRITERS[kind](tmp_path / "first", FILES)
    second = WRITERS[kind](tmp_path / "second", dict(reversed(FILES.items())))
    assert digest_of(first) == digest_of(second)
    assert len(digest_of(first)) == 64


@pytest.mark.parametrize(
    "changed",
    [
        FILES | {"ä_3.webp": b"\xc3\xa4_3.webq"},
        {name: content for name, content in FILES.items() if name != "B_0.tiff"},
        FILES | {"b/more.png": b""},
        {name.replace("dog_2", "dog_3"): content for name, content in FILES.items()},
        FILES | {"B_0.tiff": FILES["ä_3.webp"], "ä_3.webp": FILES["B_0.tiff"]},
    ],
    ids=["one bit", "one less", "one more", "another name", "two swapped"],
)
def test_the_digest_changes_with_the_content(tmp_path: Path, changed: Files) -> None:
    assert digest_of(write_folder(tmp_path / "a", FILES)) != digest_of(write_folder(tmp_path / "b", changed))


def test_the_digest_changes_with_labels_and_format_and_not_with_what_is_ignored(tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", FILES)
    digests = {digest_of(plain, labels=labels) for labels in LABELS} | {digest_of(WRITERS["zip"](tmp_path, FILES))}
    assert len(digests) == 4
    assert digest_of(write_folder(tmp_path / "more", FILES | OTHERS)) == digest_of(plain)


def test_pixels_of_another_shape_or_class_have_another_digest(tmp_path: Path) -> None:
    images = pixels(2, 4, 6, 3)
    for name, array, labels in (
        ("a", images, [0, 1]),
        ("b", images.reshape(2, 6, 4, 3), [0, 1]),
        ("c", images, [1, 0]),
    ):
        np.savez(tmp_path / f"{name}.npz", array, np.array(labels))
    assert len({digest_of(tmp_path / f"{name}.npz") for name in "abc"}) == 3


names = st.text("ab/1", max_size=3)
file_names = st.text("abÄ_ ", min_size=1, max_size=4).map("{}.png".format)
labels = st.none() | st.integers(-2, 12) | names
lists = st.lists(st.tuples(names, labels, st.binary(max_size=3)), max_size=3)


class Listed(Source):
    """A source of what it is given."""

    def __init__(self, listed: list[tuple[str, str | int | None, bytes]], format: Format = "zip") -> None:
        self.format = format
        self.listed = listed

    def entries(self) -> list[Entry]:
        return [Entry(name, label, lambda content=content: content) for name, label, content in self.listed]


@given(ours=lists, theirs=lists)
@example(ours=[("a", 7, b"")], theirs=[("a", "7", b"")])
@example(ours=[("a", None, b"")], theirs=[("a", "None", b"")])
@example(ours=[("a", "str b", b"")], theirs=[("astr ", "b", b"")])
def test_two_lists_share_a_digest_only_if_they_are_equal(ours: Any, theirs: Any) -> None:
    assert (digest_of_source(Listed(ours)) == digest_of_source(Listed(theirs))) == (ours == theirs)


@given(files=st.dictionaries(file_names, st.binary(max_size=40), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_files_come_back_from_every_kind_of_archive(tmp_path_factory: Any, files: Files) -> None:
    path = tmp_path_factory.mktemp("any")
    for kind in WRITERS:
        with open_source(WRITERS[kind](path, files)) as source:
            assert contents(source) == files


def test_a_member_read_twice_is_the_same(tmp_path: Path) -> None:
    for kind in ("zip", "tar", "tar.gz"):
        with open_source(WRITERS[kind](tmp_path, FILES)) as source:
            assert contents(source) == contents(source)


def test_a_file_that_is_gone_is_named_when_it_is_read(tmp_path: Path) -> None:
    with open_source(write_folder(tmp_path / "images", {"a/1.png": b""})) as source:
        (tmp_path / "images/a/1.png").unlink()
        with pytest.raises(ImageRefused, match=r"'a/1\.png': cannot be read \(No such file"):
            source.entries()[0].read()


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "images", FILES)
    monkeypatch.setattr("pipelines.sources.files._read_file", lambda *_: pytest.fail("read too early"))
    with open_source(path) as source:
        assert len(source.entries()) == 5
