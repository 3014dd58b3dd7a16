"""Downloads from a real local server, honest and evil; nothing half-done is ever left behind."""

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loractr.data import download as downloads
from loractr.data.catalogue import DATASETS, Archive, Dataset
from loractr.data.config import SourceName
from loractr.data.download import download, get
from loractr.data.unpack import unpack
from loractr.errors import DownloadError, LoractrError, UsageError

FILES = {"ratings.dat": b"1::2::3::4\n", "users.dat": b"u", "movies.dat": b"m" * 5000}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/broken-off.zip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        elif self.path == "/endless.zip":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served, and its address."""
    folder = tmp_path_factory.mktemp("site")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tarred(
    members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if change is not None:
                change(info)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PACKERS = pytest.mark.parametrize(
    ("pack", "suffix"), [(zipped, "zip"), (tarred, "tar.gz")], ids=["zip", "tar.gz"]
)


@pytest.fixture
def offer(site, monkeypatch) -> Callable[..., Dataset]:
    """Serve an archive as the download of movielens-1m."""

    def serve(content: bytes, name: str, **changes: object) -> Dataset:
        folder, url = site
        (folder / name).write_bytes(content)
        digest = hashlib.md5(content).hexdigest()
        archive = Archive(f"{url}/{name}", digest, max_bytes=100_000, max_unpacked_bytes=100_000)
        dataset = replace(DATASETS["movielens-1m"], archive=replace(archive, **changes))
        monkeypatch.setitem(downloads.DATASETS, "movielens-1m", dataset)
        return dataset

    return serve


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@PACKERS
def test_a_download_leaves_the_wanted_files_and_notices_and_no_more(offer, tmp_path, pack, suffix):
    inner = {f"ml-1m/{name}": content for name, content in FILES.items()}
    extra = {"ml-1m/README": b"terms", "ml-1m/other.bin": b"?", "__MACOSX/._ratings.dat": b"?"}
    offer(pack(inner | extra), f"good.{suffix}")
    out = get("movielens-1m", tmp_path / "new" / "ml-1m")
    assert contents(out) == FILES | {"README": b"terms"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ml-1m"]


def test_progress_ends_at_the_size_of_the_file(offer, tmp_path):
    content = zipped(FILES | {"pad": os.urandom(50_000)})
    offer(content, "progress.zip")
    seen: list[tuple[int, int | None]] = []
    get("movielens-1m", tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(content), len(content))


def fails(tmp_path: Path, problem: str, error: type[LoractrError] = DownloadError) -> None:
    """Getting movielens-1m fails with `problem`, and leaves nothing anywhere."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=problem):
        get("movielens-1m", tmp_path / "sub" / "out")
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] in (
        [],
        [tmp_path / "sub"],
    )
    assert not (tmp_path / "sub").exists() or not any((tmp_path / "sub").iterdir())


def test_a_wrong_checksum_is_refused(offer, tmp_path):
    offer(zipped(FILES), "sum.zip", md5="0" * 32)
    fails(tmp_path, "its publisher states 00000")


def test_a_download_without_a_published_checksum_is_taken(offer, tmp_path):
    offer(zipped(FILES), "nosum.zip", md5=None)
    assert contents(get("movielens-1m", tmp_path / "out")) == FILES


def test_a_download_larger_than_its_limit_is_stopped(offer, tmp_path):
    offer(zipped(FILES | {"pad": os.urandom(2000)}), "large.zip", max_bytes=1000)
    fails(tmp_path, "is larger than 1,000 bytes")


def test_an_endless_download_of_unknown_size_is_stopped(offer, tmp_path):
    served = offer(zipped(FILES), "some.zip")
    endless = served.archive.url.replace("some.zip", "endless.zip")
    offer(zipped(FILES), "some.zip", url=endless)
    fails(tmp_path, "is larger than 100,000 bytes")


def test_a_download_that_breaks_off_is_refused(offer, tmp_path):
    served = offer(zipped(FILES), "some.zip")
    offer(zipped(FILES), "some.zip", url=served.archive.url.replace("some", "broken-off"))
    fails(tmp_path, "broke off after 10 of 1,000 bytes")


def test_a_page_that_is_not_there_is_an_error(offer, tmp_path):
    served = offer(zipped(FILES), "some.zip")
    offer(zipped(FILES), "some.zip", url=served.archive.url.replace("some", "gone"))
    fails(tmp_path, "could not be fetched: .*File not found")


def test_a_server_that_is_not_there_is_an_error(tmp_path):
    archive = Archive("http://127.0.0.1:9/x.zip", None, 1, 1)
    with pytest.raises(DownloadError, match="could not be fetched"):
        download(archive, tmp_path / "x.zip")


@PACKERS
@pytest.mark.parametrize(
    "name",
    [
        "../ratings.dat",
        "a/../../ratings.dat",
        "/etc/ratings.dat",
        "..\\ratings.dat",
        "C:\\users.dat",
    ],
)
def test_an_archive_with_a_path_that_escapes_is_refused_whole(offer, tmp_path, pack, suffix, name):
    offer(pack(FILES | {name: b"evil"}), f"escape.{suffix}")
    fails(tmp_path, "would leave its folder")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_a_tar_with_a_link_or_device_is_refused_whole(offer, tmp_path, kind):
    def linked(info: tarfile.TarInfo) -> None:
        if info.name == "ratings.dat":
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    offer(tarred(FILES, linked), "link.tar.gz")
    fails(tmp_path, "is a link or a device")


def test_a_zip_with_a_link_is_refused_whole(offer, tmp_path):
    buffer = io.BytesIO(zipped(FILES))
    with zipfile.ZipFile(buffer, "a") as file:
        info = zipfile.ZipInfo("link.dat")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    offer(buffer.getvalue(), "link.zip")
    fails(tmp_path, "is a link or a device")


@PACKERS
@pytest.mark.parametrize("name", ["movies.dat", "unwanted.bin"])
def test_an_archive_that_unpacks_to_too_much_is_stopped(offer, tmp_path, pack, suffix, name):
    bomb = pack(FILES | {name: bytes(5_000_000)})
    assert len(bomb) < 100_000
    offer(bomb, f"bomb-{name}.{suffix}")
    if (suffix, name) == ("zip", "unwanted.bin"):  # never unpacked
        assert contents(get("movielens-1m", tmp_path / "out")) == FILES
    else:
        fails(tmp_path, "unpacks to more than 100,000 bytes")


@PACKERS
def test_an_archive_with_a_wanted_file_twice_is_refused(offer, tmp_path, pack, suffix):
    offer(pack(FILES | {"other/users.dat": b"evil"}), f"twice.{suffix}")
    fails(tmp_path, "holds 'users.dat' twice")


@PACKERS
def test_an_archive_without_a_wanted_file_is_refused(offer, tmp_path, pack, suffix):
    offer(pack({name: FILES[name] for name in ("ratings.dat", "users.dat")}), f"less.{suffix}")
    fails(tmp_path, "holds no movies.dat")


@PACKERS
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:40] + b[60:]])
def test_a_damaged_archive_is_refused(offer, tmp_path, pack, suffix, damage):
    whole = pack({name: os.urandom(3000) for name in FILES})
    offer(damage(whole), f"damaged.{suffix}")
    fails(tmp_path, "cannot be unpacked")


def test_what_is_no_archive_at_all_is_refused(offer, tmp_path):
    offer(b"<html>log in first</html>", "page.zip")
    fails(tmp_path, "cannot be unpacked")


def test_a_folder_in_use_is_not_touched(offer, tmp_path):
    offer(zipped(FILES), "good.zip")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(UsageError, match="exists already"):
        get("movielens-1m", out)
    assert contents(out) == {"mine": b"keep"}


def test_an_empty_folder_is_filled(offer, tmp_path):
    offer(zipped(FILES), "good.zip")
    (tmp_path / "out").mkdir()
    assert contents(get("movielens-1m", tmp_path / "out")) == FILES


@pytest.mark.parametrize("inner", [".", "ml-1m"])
def test_a_local_folder_is_copied_without_a_checksum(tmp_path, inner):
    folder = tmp_path / "mine" / inner
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content + b"repaired")
    (folder / "README.movielens").write_bytes(b"terms")
    (folder / "notes.txt").write_bytes(b"private")
    out = get("movielens-1m", tmp_path / "out", source_dir=tmp_path / "mine")
    expected = {name: content + b"repaired" for name, content in FILES.items()}
    assert contents(out) == expected | {"README.movielens": b"terms"}


def test_a_local_folder_without_a_wanted_file_is_refused(tmp_path):
    (tmp_path / "ratings.dat").write_bytes(b"1")
    with pytest.raises(UsageError, match=r"lacks 'users.dat', 'movies.dat' of movielens-1m"):
        get("movielens-1m", tmp_path / "out", source_dir=tmp_path)
    assert not (tmp_path / "out").exists()


def test_patterns_of_a_local_folder_match_packed_files(tmp_path):
    for stem in ("Clothing_Shoes_and_Jewelry", "Beauty", "Health_and_Personal_Care"):
        (tmp_path / f"reviews_{stem}_5.json.gz").write_bytes(b"x")
    out = get("amazon-2014", tmp_path / "out", source_dir=tmp_path)
    assert len(contents(out)) == 3


@pytest.mark.parametrize("name", ["amazon-2014", "amazon-2018", "taobao-theme", "ali-ccp"])
def test_a_data_set_behind_a_login_says_what_to_do(tmp_path, name):
    with pytest.raises(UsageError, match=rf"{name} has no direct download\. .*\nFix: .*--from"):
        get(name, tmp_path / "out")


def test_an_unknown_name_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="no data set 'movielens'; did you mean 'movielens-1m'"):
        get("movielens", tmp_path / "out")


def test_every_data_set_is_a_source_and_states_terms_and_citation():
    names = set(SourceName.__args__)
    assert set(DATASETS) == names - {"synthetic", "table"}
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.terms
        assert "doi" in dataset.citation
        assert dataset.instructions or dataset.archive
        if dataset.archive:
            assert dataset.archive.url.startswith("https://")
            assert re.fullmatch(r"[0-9a-f]{32}", dataset.archive.md5)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """The copy is real; only the disk's last word is not."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.shutil, "copyfile", full)
    with pytest.raises(LoractrError, match="the disk is full"):
        get("movielens-1m", tmp_path / "sub" / "out", source_dir=tmp_path)
    assert not any((tmp_path / "sub").iterdir())


@PACKERS
def test_unpack_writes_only_plain_names_into_the_target(tmp_path, pack, suffix):
    archive = tmp_path / f"a.{suffix}"
    archive.write_bytes(pack({"deep/er/ratings.dat": b"1"}))
    (tmp_path / "target").mkdir()
    unpack(archive, tmp_path / "target", files=["*.dat"], max_bytes=100_000)
    assert contents(tmp_path / "target") == {"ratings.dat": b"1"}


@pytest.mark.real_data
def test_the_real_folders_are_copied_as_they_are(movielens, kuairand, tmp_path):
    for name, folder in (("movielens-1m", movielens), ("kuairand-pure", kuairand)):
        out = get(name, tmp_path / name, source_dir=folder)
        for path in out.iterdir():
            assert path.stat().st_size == (folder / path.name).stat().st_size
        assert {*DATASETS[name].files} < {path.name for path in out.iterdir()}
