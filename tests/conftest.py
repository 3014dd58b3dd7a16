"""What all tests share: one thread, a cache of their own, the folder of real data."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before anything imports torch: results do not depend on the machine's cores, and tests that
# need no torch do not pay for importing it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

REAL_DATA = Path(
    os.environ.get("LORACTR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data sets and kernels of the tests are kept apart from the user's: without
    LORACTR_KERNELS=native none are used, also none of the user's, but where `kernels` is asked
    for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORACTR_CACHE", str(tmp_path_factory.mktemp("cache")))
        if os.environ.get("LORACTR_KERNELS") == "native":
            from loractr import native

            native.build()
        else:
            patch.setenv("LORACTR_KERNELS", "torch")
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with compiled kernels; the test is skipped where there is no compiler."""
    from loractr import native
    from loractr.errors import UsageError

    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORACTR_CACHE", str(folder))
        try:
            native.build()
        except UsageError as error:
            if not any(map(shutil.which, native.COMPILERS)):
                pytest.skip(f"kernels: {error}")
            raise
    return folder


@pytest.fixture
def kernels(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute with compiled kernels meanwhile."""
    from loractr import native

    monkeypatch.setenv("LORACTR_CACHE", str(compiled))
    with native.use("native"):
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with `ml-1m/` and `kuairand-pure/`; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data: no folder {REAL_DATA}; name yours in LORACTR_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def movielens(data_root: Path) -> Path:
    """The folder of MovieLens-1M's official files."""
    return _folder(data_root / "ml-1m", "ratings.dat")


@pytest.fixture(scope="session")
def kuairand(data_root: Path) -> Path:
    """The folder of KuaiRand-Pure's official files."""
    return _folder(data_root / "kuairand-pure", "log_standard_4_22_to_5_08_pure.csv")


def _folder(folder: Path, wanted: str) -> Path:
    if not (folder / wanted).is_file():
        pytest.skip(f"real data: {folder} has no {wanted}")
    return folder
