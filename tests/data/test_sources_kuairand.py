"""KuaiRand-Pure: log and feature tables joined row by row; nothing after the click is an input."""

from pathlib import Path

import polars as pl
import pytest

from loractr.data.config import DataConfig
from loractr.data.sources import open_source
from loractr.errors import DataError, MalformedLineError

LOG = """\
user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,\
long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab
1,8,20220425,0,1650812741436,1,0,0,0,0,0,1,61802,49866,0,0,0,0,1
0,7,20220430,2300,1651330000000,0,0,0,0,0,0,0,0,9500,0,0,0,0,14
1,7,20220501,1200,1651380000000,0,0,0,0,0,0,0,1184,9500,0,0,0,0,1
"""
USERS = """\
user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,\
follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,\
register_days,register_days_range,onehot_feat0,onehot_feat1,onehot_feat2,onehot_feat3,onehot_feat4,\
onehot_feat5,onehot_feat6,onehot_feat7,onehot_feat8,onehot_feat9,onehot_feat10,onehot_feat11,\
onehot_feat12,onehot_feat13,onehot_feat14,onehot_feat15,onehot_feat16,onehot_feat17
0,full_active,0,1,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,1,1,29,949,1.0,0,0,14,135,6,3,0,\
0.0,1.0,0.0,0.0,0.0,0.0
1,high_active,0,-124,1,457,"(250,500]",20,"[10,100)",3,"[1,5)",1474,730+,1,3,2,1160,,0,0,31,283,6,\
2,2,,,,,,
"""
VIDEOS = """\
video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,\
server_height,music_id,music_type,tag
7,2103883,NORMAL,2022-04-10,Kmovie,0.0,9500.0,720.0,1280.0,6355810746,9.0,"20,43"
8,8635271,AD,2022-04-09,Web,0.0,,720.0,1280.0,0,,
"""
NAMES = {
    "log_standard_4_22_to_5_08_pure.csv": LOG,
    "user_features_pure.csv": USERS,
    "video_features_basic_pure.csv": VIDEOS,
}
AFTER_THE_CLICK = [
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in NAMES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def rows(folder: Path) -> pl.DataFrame:
    return open_source(DataConfig(source="kuairand-pure", path=folder)).frame.collect()


def test_log_rows_keep_their_order_and_get_their_users_and_videos_columns(folder):
    assert rows(folder).select(
        "user_id", "video_id", "is_click", "tab", "user_active_degree", "author_id", "tag"
    ).rows() == [
        (1, 8, 1, 1, "high_active", 8635271, None),
        (0, 7, 0, 14, "full_active", 2103883, "20,43"),
        (1, 7, 0, 1, "high_active", 2103883, "20,43"),
    ]


def test_hour_and_weekday_come_from_the_clock(folder):
    frame = rows(folder)
    assert frame["hour"].to_list() == [0, 23, 12]
    assert frame["weekday"].to_list() == [1, 6, 7]  # a Monday, a Saturday, a Sunday


def test_codes_are_whole_numbers_and_gaps_stay_gaps(folder):
    frame = rows(folder)
    assert frame["onehot_feat4"].to_list() == [None, 1, None]
    assert frame["music_id"].to_list() == [0, 6355810746, 6355810746]
    assert frame["music_type"].to_list() == [None, 9, 9]
    assert frame["video_duration"].to_list() == [None, 9500.0, 9500.0]


def test_a_user_without_features_has_gaps_there(folder):
    log = folder / "log_standard_4_22_to_5_08_pure.csv"
    log.write_text(LOG.replace("\n0,7", "\n99,7"))
    assert rows(folder)["user_active_degree"].to_list() == ["high_active", None, "high_active"]


def test_nothing_that_follows_the_click_is_offered_and_each_has_a_reason(folder):
    table = open_source(DataConfig(source="kuairand-pure", path=folder))
    assert sorted(table.post_outcome) == sorted(AFTER_THE_CLICK)
    assert all(table.post_outcome.values())
    assert not set(AFTER_THE_CLICK) & {field.source_column for field in table.fields.values()}


def test_every_field_reads_a_column_that_its_kind_fits(folder):
    table = open_source(DataConfig(source="kuairand-pure", path=folder))
    columns = table.frame.collect_schema()
    for field in table.fields.values():
        assert columns[field.source_column].is_numeric() or field.kind != "numerical"
    assert set(table.default_fields) <= set(table.fields)
    assert table.fields["tag"].separator == ","


def test_other_official_files_in_the_folder_are_left_alone(folder):
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(LOG)
    (folder / "log_random_4_22_to_5_08_pure.csv").write_text(LOG)
    assert len(rows(folder)) == 3


def test_a_malformed_log_line_is_named(folder):
    log = folder / "log_standard_4_22_to_5_08_pure.csv"
    log.write_text(LOG.replace("2300", "23h"))
    with pytest.raises(MalformedLineError, match=r"pure.csv, line 3: hourmin must be a whole"):
        rows(folder)


def test_a_log_line_cut_short_is_named(folder):
    log = folder / "log_standard_4_22_to_5_08_pure.csv"
    log.write_text(LOG.rstrip("\n")[: -len(",0,0,0,1")] + "\n")
    with pytest.raises(MalformedLineError, match=r"line 4: expected 19 values .* found 15"):
        rows(folder)


def test_a_log_without_a_column_is_refused(folder):
    users = folder / "user_features_pure.csv"
    users.write_text(USERS.replace("register_days,", "days,"))
    with pytest.raises(DataError, match="lacks the columns 'register_days'"):
        rows(folder)


def test_a_video_listed_twice_is_refused(folder):
    videos = folder / "video_features_basic_pure.csv"
    videos.write_text(VIDEOS + VIDEOS.splitlines()[1] + "\n")
    with pytest.raises(DataError, match="lists video_id '7' more than once"):
        rows(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"lacks '{name}'"):
        rows(folder)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_file_is_named(folder, name):
    (folder / name).write_text("")
    with pytest.raises(DataError, match=f"{name} is empty"):
        rows(folder)


@pytest.mark.real_data
def test_the_real_files_have_the_published_counts(kuairand):
    frame = rows(kuairand)
    assert len(frame) == 228_329
    assert frame["user_id"].n_unique() == 25_156
    assert frame["video_id"].n_unique() == 6_361
    by_tab = frame.group_by("tab").agg(pl.len(), pl.col("is_click").mean().round(3))
    published = {
        (1, 173_008, 0.494),
        (0, 20_254, 0.086),
        (4, 13_647, 0.596),
        (6, 11_208, 0.149),
        (2, 6_909, 0.481),
        (8, 1_083, 0.042),
    }
    assert published <= set(by_tab.iter_rows())
    rate = dict(by_tab.select("tab", "is_click").iter_rows())
    assert (rate[11], rate[14], rate[10]) == (0, 0, 1)
    log_columns = LOG.splitlines()[0].split(",")
    repeats = frame.filter(frame.select(log_columns).is_duplicated())
    assert len(repeats) == 10_911
    assert (repeats["tab"] == 6).mean() > 0.9
    assert frame["user_active_degree"].null_count() == 0
    assert frame["author_id"].null_count() == 0
