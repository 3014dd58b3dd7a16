"""MovieLens-1M: the official format, read exactly; what is wrong with a file is said."""

import time
from pathlib import Path

import polars as pl
import pytest

from loractr.data.config import DataConfig
from loractr.data.sources import open_source
from loractr.errors import ConfigError, DataError, MalformedLineError

RATINGS = "7::20::5::978300760\n7::10::3::978302109\n8::10::4::978301968\n"
USERS = "7::F::1::10::48067\n8::M::56::16::06810-1234\n9::M::25::15::55117\n"
MOVIES = "10::Clerks: The Café (1995)::Animation|Children's|Comedy\n20::Heat (1995)::Action\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, RATINGS)
    return tmp_path


def write(folder: Path, ratings: str, users: str = USERS, movies: str = MOVIES) -> None:
    for name, content in (("ratings", ratings), ("users", users), ("movies", movies)):
        (folder / f"{name}.dat").write_text(content, encoding="latin-1", newline="")


def rows(folder: Path) -> pl.DataFrame:
    return open_source(DataConfig(source="movielens-1m", path=folder)).frame.collect()


def test_ratings_come_in_file_order_with_their_users_and_movies(folder):
    assert rows(folder).select(
        "user", "movie", "rating", "timestamp", "gender", "age", "occupation", "zip"
    ).rows() == [
        (7, 20, 5, 978300760, "F", 1, 10, "48067"),
        (7, 10, 3, 978302109, "F", 1, 10, "48067"),
        (8, 10, 4, 978301968, "M", 56, 16, "06810-1234"),
    ]


def test_latin_1_titles_and_colons_in_titles_survive(folder):
    assert rows(folder)["title"].to_list()[1] == "Clerks: The Café (1995)"


def test_genres_are_a_list_and_the_first_one_a_column(folder):
    frame = rows(folder)
    assert frame["genres"].to_list()[:2] == [["Action"], ["Animation", "Children's", "Comedy"]]
    assert frame["first_genre"].to_list() == ["Action", "Animation", "Animation"]


def test_windows_line_ends_are_read(folder):
    unix = rows(folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert rows(folder).equals(unix)


def test_a_last_line_without_an_end_is_read(folder):
    write(folder, RATINGS.rstrip("\n"))
    assert len(rows(folder)) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("7::20::5", "expected user::movie::rating::timestamp, found 3 fields"),
        ("7::20::5::1::2", "found 5 fields"),
        ("7::20::x::1", "rating must be a whole number, not 'x'"),
        ("7::::5::1", "movie must be a whole number, not ''"),
        ("7::20::4.5::1", "rating must be a whole number, not '4.5'"),
        ("7:20:5:1", "found 1 fields"),
        ("", "found 1 fields"),
        ("7::20::5::99999999999999999999", "timestamp must be a whole number"),
        ("7::1_0::5::1", "movie must be a whole number, not '1_0'"),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_malformed_rating_is_named_by_file_and_line(folder, line, problem, number):
    lines = RATINGS.splitlines()
    lines.insert(number - 1, line)
    write(folder, "\n".join(lines) + "\n")
    with pytest.raises(MalformedLineError) as error:
        rows(folder)
    assert (error.value.path, error.value.line) == (folder / "ratings.dat", number)
    assert problem in str(error.value)


def test_a_malformed_user_is_named_by_file_and_line(folder):
    write(folder, RATINGS, users=USERS + "10::F::old::1::1\n")
    with pytest.raises(MalformedLineError, match=r"users.dat, line 4: age must be a whole number"):
        rows(folder)


def test_a_malformed_movie_is_named_by_file_and_line(folder):
    write(folder, RATINGS, movies="10::Heat (1995)\n" + MOVIES)
    with pytest.raises(MalformedLineError, match=r"movies.dat, line 1: expected movie::title"):
        rows(folder)


@pytest.mark.parametrize(("what", "listed"), [("user", "users"), ("movie", "movies")])
def test_ratings_of_what_is_not_listed_are_refused(folder, what, listed):
    write(folder, RATINGS + "70::10::4::1\n8::90::4::1\n")
    unknown = {"user": "70", "movie": "90"}
    path = folder / f"{listed}.dat"
    text = path.read_text(encoding="latin-1")
    other = "users.dat" if what == "movie" else "movies.dat"
    extra = {"users.dat": "70::F::1::1::1\n", "movies.dat": "90::X::Drama\n"}[other]
    (folder / other).write_text((folder / other).read_text("latin-1") + extra, encoding="latin-1")
    assert unknown[what] not in text
    with pytest.raises(DataError, match=f"1 ratings are of a {what} .* '{unknown[what]}'"):
        rows(folder)


def test_a_user_listed_twice_is_refused(folder):
    write(folder, RATINGS, users=USERS + "8::M::25::1::1\n")
    with pytest.raises(DataError, match=r"users.dat lists user '8' more than once"):
        rows(folder)


@pytest.mark.parametrize("name", ["ratings.dat", "users.dat", "movies.dat"])
def test_an_empty_file_is_named(folder, name):
    (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name} is empty"):
        rows(folder)


def test_a_missing_file_is_named(folder):
    (folder / "users.dat").unlink()
    with pytest.raises(DataError, match=r"lacks 'users.dat'.*\nFix: .*data get movielens-1m"):
        rows(folder)


def test_a_file_of_another_format_is_refused_not_misread(folder):
    (folder / "ratings.dat").write_bytes(bytes(range(256)))
    with pytest.raises(MalformedLineError):
        rows(folder)


def test_a_file_in_place_of_the_folder_is_refused(folder):
    with pytest.raises(DataError, match="is a file; source movielens-1m reads the folder"):
        rows(folder / "ratings.dat")


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        rows(tmp_path / "nowhere")


def test_a_configuration_without_a_path_is_refused():
    with pytest.raises(ConfigError, match=r"data\.path is missing"):
        open_source(DataConfig(source="movielens-1m"))


def test_every_field_is_a_column_and_the_rating_is_none(folder):
    table = open_source(DataConfig(source="movielens-1m", path=folder))
    columns = table.frame.collect_schema().names()
    assert {field.source_column for field in table.fields.values()} <= set(columns)
    assert set(columns) - set(table.fields) == {"rating"} == set(table.post_outcome)


@pytest.mark.real_data
def test_the_real_files_have_the_published_counts(movielens):
    start = time.process_time()
    frame = rows(movielens)
    seconds = time.process_time() - start
    assert len(frame) == 1_000_009
    assert frame["user"].n_unique() == 6_040
    assert round(100 * (frame["rating"] == 5).mean(), 2) == 22.62
    assert round(100 * (frame["rating"] > 3).mean(), 2) == 57.51
    published = {"1,18": 210_747, "25": 395_556, "35,45,50,56": 393_906}
    group = pl.col("age").replace_strict({1: "1,18", 18: "1,18", 25: "25"}, default="35,45,50,56")
    found = dict(frame.group_by(group).len().iter_rows())
    missing = {name: count - found[name] for name, count in published.items()}
    assert min(missing.values()) >= 0
    assert sum(missing.values()) == 200
    assert sorted(frame["age"].unique()) == [1, 18, 25, 35, 45, 50, 56]
    assert frame["title"].null_count() == 0
    assert seconds < 4  # about 0.6 s on one core
