from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import open_dataset, prepare, verify
from cnn_jobs.errors import DataError, StateDirError
from tests.data.conftest import Pictures, small_dataset


@pytest.fixture
def animals(write_zip: Callable[..., Path], pictures: Pictures) -> str:
    return str(write_zip(pictures))


def test_the_file_is_named_by_source_and_digest(animals: str, tmp_path: Path) -> None:
    written = prepare(animals, str(tmp_path / "new" / "folder"))
    digest = open_dataset(animals).digest
    assert written == str(tmp_path / "new" / "folder" / f"animals-{digest[:12]}.npz")
    assert open_dataset(written).digest == digest
    assert [file.name for file in Path(written).parent.iterdir()] == [Path(written).name]


def test_a_prepared_file_prepared_again_keeps_its_name(animals: str, tmp_path: Path) -> None:
    first = Path(prepare(animals, str(tmp_path / "one")))
    second = Path(prepare(str(first), str(tmp_path / "two")))
    assert second.name == first.name


def test_shapes_stays_synthetic_and_small(tmp_path: Path) -> None:
    written = prepare("shapes", str(tmp_path))
    dataset = verify(written)
    assert (dataset.name, dataset.synthetic) == ("shapes", True)
    assert Path(written).stat().st_size < dataset.train_images.nbytes + dataset.test_images.nbytes


def test_a_name_that_ends_in_npz_is_taken_as_it_is(animals: str, tmp_path: Path) -> None:
    assert prepare(animals, str(tmp_path / "pets.npz")) == str(tmp_path / "pets.npz")
    assert verify(str(tmp_path / "pets.npz")).name == "pets"


def test_a_whole_file_of_the_same_digest_is_kept(animals: str, tmp_path: Path) -> None:
    written = Path(prepare(animals, str(tmp_path)))
    before = written.stat()
    assert prepare(animals, str(tmp_path)) == str(written)
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["damaged", "another data set"])
def test_a_file_that_is_not_that_data_set_is_replaced(animals: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pets.npz"
    if kind == "damaged":
        path.write_bytes(b"PK\3\4")
    else:
        write_prepared(small_dataset(), path, compressed=True)
    prepare(animals, str(path))
    assert verify(str(path)).digest == open_dataset(animals).digest


def test_an_unwritable_directory_is_said_in_one_line(animals: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateDirError, match=r"animals-.*\.npz: cannot be written") as caught:
        prepare(animals, str(tmp_path / "file"))
    assert caught.value.exit_code == 2


def test_a_read_only_file_system_is_said_in_one_line(animals: str) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("/proc is not here: no directory that even root cannot write")
    with pytest.raises(StateDirError, match="cannot be written"):
        prepare(animals, "/proc/self")


def test_another_scheme_is_no_place(animals: str) -> None:
    with pytest.raises(DataError, match=r"^https://...: not a place for a file") as caught:
        prepare(animals, "https://user:hunter2@host/")
    assert "hunter2" not in str(caught.value)


def test_verify_takes_the_digest_whole_or_its_first_digits(animals: str) -> None:
    digest = open_dataset(animals).digest
    for expected in (None, digest, digest[:12], digest.upper()):
        assert verify(animals, expected).digest == digest


def test_verify_refuses_another_digest(animals: str) -> None:
    digest = open_dataset(animals).digest
    wrong = digest[:11] + ("0" if digest[11] != "0" else "1")
    with pytest.raises(DataError, match=re.escape(f"{animals}: sha256 {digest[:12]}, expected {wrong}; ")) as caught:
        verify(animals, wrong)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("expected", ["", "abc", "x" * 64, "a" * 65, "a" * 11])
def test_verify_refuses_what_is_no_digest(animals: str, expected: str) -> None:
    with pytest.raises(DataError, match="must be 12 to 64 hexadecimal digits"):
        verify(animals, expected)


@pytest.mark.integration
def test_a_data_set_goes_to_a_bucket_and_back(animals: str, bucket: str, cache_dir: Path) -> None:
    digest = open_dataset(animals).digest
    uri = prepare(animals, f"s3://{bucket}/sets/")
    assert uri == f"s3://{bucket}/sets/animals-{digest[:12]}.npz"
    dataset = verify(uri, digest)
    assert (dataset.name, dataset.uri) == ("animals", uri)
    assert not list(cache_dir.glob("prepare-*"))


@pytest.mark.integration
def test_an_object_of_the_same_digest_is_kept_and_another_replaced(animals: str, bucket: str) -> None:
    client = boto3.client("s3")
    uri = prepare(animals, f"s3://{bucket}/pets.npz")
    first = client.head_object(Bucket=bucket, Key="pets.npz")["ETag"]
    # Named by the whole of what it holds, an upload would be of the same content but of another time inside
    # the zip.
    client.put_object(Bucket=bucket, Key="pets.npz", Body=b"kept", Metadata={"cnn-jobs-digest": verify(uri).digest})
    prepare(animals, uri)
    assert client.get_object(Bucket=bucket, Key="pets.npz")["Body"].read() == b"kept"
    prepare("shapes", uri)
    assert client.head_object(Bucket=bucket, Key="pets.npz")["ETag"] != first
    assert verify(uri).synthetic
