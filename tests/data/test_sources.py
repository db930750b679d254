from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import platformdirs
import pytest

from cnn_jobs.data import cifar10
from cnn_jobs.data.dataset import Dataset
from cnn_jobs.data.prepared import write_prepared
from cnn_jobs.data.sources import (
    default_cache_dir,
    open_dataset,
    prepare,
    stage_cifar10,
    verify,
    writable_cache_dir,
)
from cnn_jobs.errors import DataError, RemoteDataError, StateDirError, UserError
from tests.helpers.datasets import Images, put, small_dataset, striped_dataset
from tests.helpers.servers import sending, speaking, unused_url

integration = pytest.mark.integration


@pytest.fixture
def animals(write_zip: Callable[..., Path], images: Images) -> str:
    return str(write_zip(images))


def rejected(uri: str, message: str) -> str:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(uri)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("uri", ["no/such/place", "cifar100", "nothing.zip", "none.npz", "Shapes", ""])
def test_a_missing_path_or_unknown_name_is_rejected_with_the_valid_forms(uri: str) -> None:
    line = rejected(uri, "no such file or directory; --data takes 'cifar10', 'shapes', an ImageFolder directory")
    assert line.startswith(uri or "an empty name")


def test_another_scheme_is_rejected_without_its_password() -> None:
    line = rejected("https://user:hunter2@host.example/x.npz?token=hunter3", "https://...: not a data set")
    rejected("ftp://[x/hunter2", "ftp://...: not a data set")
    assert "hunter" not in line


@pytest.mark.parametrize("name", ["x.tar.gz", "x.csv", "x"])
def test_a_file_of_another_kind_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    rejected(str(tmp_path / name), f"{name}: a file of this kind is not a data set; --data takes")


def test_shapes_needs_no_disk_and_wins_over_a_directory(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert open_dataset("shapes").synthetic
    assert not cache_dir.exists()
    rejected("./shapes", r"\./shapes: has no class folders in train/")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_prepared(small_dataset(), tmp_path / "x.npz", compressed=False)
    assert open_dataset("~/x.npz").digest == small_dataset().digest


@pytest.mark.parametrize("uri", [".", "train/.."])
def test_a_directory_given_by_dots_has_its_own_name(
    uri: str, write_folder: Callable[[Images], Path], images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_folder(images))
    assert open_dataset(uri).name == "animals"


# -- cache directories -------------------------------------------------------------------------------------------------


def test_the_cache_directory_is_that_of_the_variable_or_of_the_user(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_cache_dir() == cache_dir
    monkeypatch.delenv("CNN_JOBS_CACHE_DIR")
    assert default_cache_dir() == Path(platformdirs.user_cache_dir("cnn-jobs"))


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Makes the cache a read-only file system with the given files, as in training pods; HOME is elsewhere."""
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = False

    def make(*files: Path) -> Path:
        nonlocal mounted
        try:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a file system cannot be mounted here: {error}")
        mounted = True
        for file in files:
            shutil.copy(file, folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, capture_output=True)
        monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(folder))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        return folder

    yield make
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@integration
def test_an_object_is_cached_in_the_users_directory_if_the_volume_is_read_only(
    volume: Callable[..., Path], bucket: str, tmp_path: Path
) -> None:
    write_prepared(small_dataset(), tmp_path / "x.npz", compressed=True)
    uri = put(bucket, "x.npz", tmp_path / "x.npz")
    folder = volume()
    assert open_dataset(uri).digest == small_dataset().digest
    assert list(folder.iterdir()) == []
    assert len(list((tmp_path / "home/.cache/cnn-jobs").iterdir())) == 1


def test_a_zip_on_a_read_only_volume_is_decoded_into_the_users_directory(
    volume: Callable[..., Path], animals: str, tmp_path: Path
) -> None:
    expected = open_dataset(animals).digest
    folder = volume(Path(animals))
    assert open_dataset(str(folder / "animals.zip")).digest == expected
    assert [path.name for path in folder.iterdir()] == ["animals.zip"]
    assert len(list((tmp_path / "home/.cache/cnn-jobs").glob("decoded-*.npz"))) == 1


@pytest.mark.parametrize("name", ["cifar10.npz", "baked.npz"])
def test_a_prepared_file_on_a_read_only_volume_needs_no_cache(
    volume: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    write_prepared(small_dataset(), tmp_path / name, compressed=False)
    folder = volume(tmp_path / name)
    dataset = open_dataset("cifar10" if name == "cifar10.npz" else str(folder / name), download=False)
    assert dataset.digest == small_dataset().digest
    assert not (tmp_path / "home").exists()


def test_a_cache_that_is_unwritable_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, animals: str
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CNN_JOBS_CACHE_DIR", str(tmp_path / "file/cache"))
    assert writable_cache_dir() == default_cache_dir()
    with pytest.raises(StateDirError, match=r"cannot be written .*CNN_JOBS_CACHE_DIR names the cache"):
        open_dataset(animals)


# -- preparing and verifying -------------------------------------------------------------------------------------------


def test_a_prepared_file_is_named_by_source_and_digest(animals: str, tmp_path: Path) -> None:
    written = prepare(animals, str(tmp_path / "new" / "folder"))
    digest = open_dataset(animals).digest
    assert written == str(tmp_path / "new" / "folder" / f"animals-{digest[:12]}.npz")
    assert open_dataset(written).digest == digest
    assert [file.name for file in Path(written).parent.iterdir()] == [Path(written).name]
    assert Path(prepare(written, str(tmp_path / "again"))).name == Path(written).name


def test_a_prepared_file_of_shapes_is_synthetic_and_small(tmp_path: Path) -> None:
    written = prepare("shapes", str(tmp_path))
    dataset = verify(written)
    assert (dataset.name, dataset.synthetic) == ("shapes", True)
    assert Path(written).stat().st_size < dataset.train_images.nbytes + dataset.test_images.nbytes


def test_an_intact_file_of_the_same_digest_is_kept(animals: str, tmp_path: Path) -> None:
    path = tmp_path / "pets.npz"
    assert prepare(animals, str(path)) == str(path)
    assert verify(str(path)).name == "pets"
    before = path.stat()
    assert prepare(animals, str(path)) == str(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["damaged", "another data set"])
def test_another_file_of_that_name_is_replaced(animals: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pets.npz"
    if kind == "damaged":
        path.write_bytes(b"PK\3\4")
    else:
        write_prepared(small_dataset(), path, compressed=True)
    prepare(animals, str(path))
    assert verify(str(path)).digest == open_dataset(animals).digest


@pytest.mark.parametrize("read_only", [True, False])
def test_an_unwritable_directory_is_an_error_in_one_line(animals: str, tmp_path: Path, read_only: bool) -> None:
    (tmp_path / "file").write_text("x")
    # Not even root can write into /proc.
    folder = "/proc/self" if read_only and Path("/proc/self").exists() else str(tmp_path / "file")
    with pytest.raises(StateDirError, match=r"animals-.*\.npz: cannot be written") as caught:
        prepare(animals, folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_cannot_be_prepared_for_another_scheme(animals: str) -> None:
    with pytest.raises(DataError, match=r"^https://...: not a place for a file") as caught:
        prepare(animals, "https://user:hunter2@host/")
    assert "hunter2" not in str(caught.value)


def test_verify_compares_the_first_digits_of_the_digest(animals: str) -> None:
    digest = open_dataset(animals).digest
    for expected in (None, digest, digest[:12], digest.upper()):
        assert verify(animals, expected).digest == digest
    wrong = digest[:11] + ("0" if digest[11] != "0" else "1")
    with pytest.raises(DataError, match=re.escape(f"{animals}: sha256 {digest[:12]}, expected {wrong}; ")) as caught:
        verify(animals, wrong)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("expected", ["", "abc", "x" * 64, "a" * 65, "a" * 11])
def test_verify_rejects_an_invalid_digest(animals: str, expected: str) -> None:
    with pytest.raises(DataError, match="must be 12 to 64 hexadecimal digits"):
        verify(animals, expected)


@integration
def test_a_data_set_is_prepared_in_a_bucket(animals: str, bucket: str, cache_dir: Path) -> None:
    digest = open_dataset(animals).digest
    uri = prepare(animals, f"s3://{bucket}/sets/")
    assert uri == f"s3://{bucket}/sets/animals-{digest[:12]}.npz"
    dataset = verify(uri, digest)
    assert (dataset.name, dataset.uri) == ("animals", uri)
    assert not list(cache_dir.glob("prepare-*"))


@integration
def test_an_object_of_the_same_digest_is_kept_and_another_replaced(animals: str, bucket: str) -> None:
    client = boto3.client("s3")
    uri = prepare(animals, f"s3://{bucket}/pets.npz")
    first = client.head_object(Bucket=bucket, Key="pets.npz")["ETag"]
    client.put_object(Bucket=bucket, Key="pets.npz", Body=b"kept", Metadata={"cnn-jobs-digest": verify(uri).digest})
    prepare(animals, uri)
    assert client.get_object(Bucket=bucket, Key="pets.npz")["Body"].read() == b"kept"
    prepare("shapes", uri)
    assert client.head_object(Bucket=bucket, Key="pets.npz")["ETag"] != first
    assert verify(uri).synthetic


# -- staging -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


def test_cifar10_is_staged_from_a_mirror_and_only_the_prepared_file_stays(
    archive: Path, cache_dir: Path, in_pod: None
) -> None:
    content = archive.read_bytes()
    archive.unlink()
    with sending(lambda path: (200, content)) as (address, _):
        first = stage_cifar10(f"{address}/{archive.name}")
        assert first.fresh
        assert [path.name for path in cache_dir.iterdir()] == ["cifar10.npz"]
        assert open_dataset("cifar10").digest == first.digest  # as in a training pod
        again = stage_cifar10(f"{address}/{archive.name}")
    assert (again.digest, again.fresh) == (first.digest, False)


def test_an_interrupted_download_is_repeated_by_the_next_attempt(archive: Path, cache_dir: Path, in_pod: None) -> None:
    content = archive.read_bytes()
    archive.unlink()
    # torchvision opens the URL twice, the first time to follow redirections.
    halves = [content[: len(content) // 2]] * 2
    with sending(lambda path: (200, halves.pop() if halves else content), len(content)) as (address, _):
        with pytest.raises(RemoteDataError) as caught:
            stage_cifar10(f"{address}/{archive.name}")
        assert caught.value.exit_code == 1
        assert stage_cifar10(f"{address}/{archive.name}").fresh
    assert [path.name for path in cache_dir.iterdir()] == ["cifar10.npz"]


def test_a_mirror_without_the_original_archive_is_a_transient_error(archive: Path, cache_dir: Path) -> None:
    archive.unlink()
    with sending(lambda path: (200, b"something else")) as (address, _):
        # An archive that was cut off looks the same.
        with pytest.raises(RemoteDataError, match="is not the original archive"):
            stage_cifar10(f"{address}/{archive.name}")
        assert list((cache_dir / "cifar10").iterdir()) == []
    with speaking(lambda path: (404, "no such file", {})) as address, pytest.raises(RemoteDataError, match="404"):
        stage_cifar10(f"{address}/{archive.name}")
    with pytest.raises(RemoteDataError, match="cannot be downloaded") as caught:
        stage_cifar10(f"{unused_url()}/{archive.name}")
    assert caught.value.exit_code == 1
    assert not cifar10.prepared_file(cache_dir).exists()


def test_a_prepared_file_is_staged_and_no_other_data_set_overwritten(tmp_path: Path, tiny_dataset: Dataset) -> None:
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    write_prepared(tiny_dataset, one, compressed=True)
    write_prepared(striped_dataset(seed=5), two, compressed=True)
    staged = stage_cifar10(str(one))
    assert staged.fresh
    assert not stage_cifar10(str(one)).fresh
    with pytest.raises(UserError, match="holds another data set"):
        stage_cifar10(str(two))
    assert open_dataset("cifar10").digest == tiny_dataset.digest
    staged.path.write_bytes(staged.path.read_bytes()[:-1000] + bytes(1000))
    again = stage_cifar10(str(one))
    assert (again.fresh, again.digest) == (True, staged.digest)
    assert open_dataset("cifar10").digest == tiny_dataset.digest


@pytest.mark.parametrize("left", ["nothing", "half an archive", "half a prepared file"])
def test_without_staged_data_a_training_pod_names_the_job_and_does_not_use_the_network(
    left: str, archive: Path, cache_dir: Path, in_pod: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive.read_bytes()
    archive.unlink()
    if left == "half an archive":
        archive.write_bytes(content[: len(content) // 2])
    elif left == "half a prepared file":
        cifar10.prepared_file(cache_dir).write_bytes(b"half")
    with monkeypatch.context() as sealed:
        sealed.setattr("urllib.request.urlopen", lambda *args, **more: pytest.fail("it used the network"))
        with pytest.raises(DataError, match=r"kubectl apply -f k8s/prepare-data-job\.yaml") as caught:
            open_dataset("cifar10")
    assert caught.value.exit_code == 2
    with sending(lambda path: (200, content)) as (address, _):
        staged = stage_cifar10(f"{address}/{archive.name}")
    assert open_dataset("cifar10").digest == staged.digest


def test_a_variable_allows_a_training_pod_to_download(in_pod: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNN_JOBS_DOWNLOAD", "1")
    monkeypatch.setattr(cifar10.open_cifar10, "__kwdefaults__", {"download": True, "url": unused_url()})
    with pytest.raises(RemoteDataError):
        open_dataset("cifar10")


@integration
def test_cifar10_is_staged_from_a_bucket_without_a_second_copy(
    cache_dir: Path, bucket: str, tmp_path: Path, tiny_dataset: Dataset, in_pod: None
) -> None:
    write_prepared(tiny_dataset, tmp_path / "one.npz", compressed=True)
    uri = put(bucket, "cifar10.npz", tmp_path / "one.npz")
    assert stage_cifar10(uri).digest == open_dataset("cifar10").digest == tiny_dataset.digest
    assert [path.name for path in cache_dir.iterdir()] == ["cifar10.npz"]
    with pytest.raises(DataError, match="no such bucket or key"):
        stage_cifar10(f"s3://{bucket}/none.npz")
