"""KuaiRand-Pure: clicks on short videos in fifteen scenarios ("tabs") of one app.

Reads the standard log of the second period with both feature tables, as unpacked from
KuaiRand-Pure.tar.gz (its folder `data`). Left alone, on purpose: the log of the first period (no
feature snapshot of its own), the log of randomly exposed videos (another policy), and
video_features_statistic_pure.csv (averages over the whole month, test days included: a leak).

    log_standard_4_22_to_5_08_pure.csv   user_id, video_id, date, hourmin, time_ms, is_click, …, tab
    user_features_pure.csv               user_id, …
    video_features_basic_pure.csv        video_id, …, tag

Source: Gao et al., KuaiRand, CIKM 2022, doi:10.1145/3511808.3557624. CC BY-SA 4.0.
"""

import polars as pl

from loractr.data.config import DataConfig
from loractr.data.sources import delimited
from loractr.data.sources.base import Table, needs_files, needs_path, refuse_repeats
from loractr.data.sources.readings import NUMBER, WHOLE, Readings
from loractr.schema import Division, Field, Label

LOG = "log_standard_4_22_to_5_08_pure.csv"
USERS = "user_features_pure.csv"
VIDEOS = "video_features_basic_pure.csv"

POST_OUTCOME = {
    "is_click": "it is the label itself",
    "is_like": "a viewer likes a video after clicking it",
    "is_follow": "a viewer follows the author after clicking",
    "is_comment": "a viewer comments after clicking",
    "is_forward": "a viewer forwards a video after clicking it",
    "is_hate": "a viewer dislikes a video after seeing it",
    "long_view": "it says how long the video was watched after the click",
    "play_time_ms": "it is how long the video was watched after the click",
    "profile_stay_time": "it is time spent on the author's profile after the click",
    "comment_stay_time": "it is time spent in the comments after the click",
    "is_profile_enter": "a viewer enters the author's profile after clicking",
}

_LOG_NUMBERS = (
    "date",
    "hourmin",
    "time_ms",
    "duration_ms",
    "is_rand",
    "tab",
    "user_id",
    "video_id",
)
_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_SIZES = ("video_duration", "server_width", "server_height")
_USER_CODES = ("is_lowactive_period", "is_live_streamer", "is_video_author")
_USER_TEXT = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
_ONE_HOT = tuple(f"onehot_feat{i}" for i in range(18))
_VIDEO_CODES = ("author_id", "music_id", "music_type", "visible_status")
_VIDEO_TEXT = ("video_type", "upload_type", "upload_dt")

_CATEGORICAL = (
    *("user_id", "video_id", "tab", "hour", "weekday", "is_rand"),
    *(*_USER_TEXT, *_USER_CODES, *_ONE_HOT, *_VIDEO_CODES, *_VIDEO_TEXT),
)
_NUMERICAL = ("duration_ms", *_COUNTS, *_SIZES)
_NOT_BY_DEFAULT = {
    "tab",  # the natural domain, which has a field of its own
    "upload_dt",  # three days in all
    "video_duration",  # duration_ms again, with gaps
    *("is_rand", "is_lowactive_period", "visible_status"),  # the same value in every row
}


def open_source(config: DataConfig) -> Table:
    """Log rows in the order of the file, each with its user's and its video's columns.

    A user or video without features has nulls there: missing is a value of its own.
    """
    folder = needs_path(config, f"the folder of {LOG} and the feature tables")
    log_path, users_path, videos_path = needs_files(
        folder, [LOG, USERS, VIDEOS], source=config.source
    )
    log = delimited.scan(log_path, dict.fromkeys((*_LOG_NUMBERS, *POST_OUTCOME), WHOLE))
    users = delimited.scan(users_path, _user_readings()).with_columns(_codes(_ONE_HOT)).collect()
    videos = (
        delimited.scan(videos_path, _video_readings()).with_columns(_codes(_VIDEO_CODES)).collect()
    )
    refuse_repeats(users, "user_id", users_path)
    refuse_repeats(videos, "video_id", videos_path)
    day = pl.col("date").cast(pl.String).str.to_date("%Y%m%d")
    frame = (
        log.with_columns(hour=pl.col("hourmin") // 100, weekday=day.dt.weekday())
        .join(users.lazy(), on="user_id", how="left", maintain_order="left")
        .join(videos.lazy(), on="video_id", how="left", maintain_order="left")
    )
    fields = _fields()
    return Table(
        frame=frame,
        fields=fields,
        default_fields=tuple(name for name in fields if name not in _NOT_BY_DEFAULT),
        divisions=(Division(name="tab", column="tab"),),
        label=Label(column="is_click"),
        post_outcome=POST_OUTCOME,
    )


def _user_readings() -> Readings:
    whole = dict.fromkeys(("user_id", *_COUNTS, *_USER_CODES), WHOLE)
    return whole | dict.fromkeys(_ONE_HOT, NUMBER)


def _video_readings() -> Readings:
    numbers = dict.fromkeys((*_SIZES, *_VIDEO_CODES), NUMBER)
    return {"video_id": WHOLE} | numbers


def _codes(names: tuple[str, ...]) -> pl.Expr:
    """Codes are whole numbers; the files write those of a column with gaps as 1.0, 2.0, …"""
    return pl.col(*names).cast(pl.Int64)


def _fields() -> dict[str, Field]:
    fields = [Field(name=name) for name in _CATEGORICAL]
    fields += [
        Field(name=name, kind="numerical", scaling="log1p", missing="mean") for name in _NUMERICAL
    ]
    fields.append(Field(name="tag", kind="sequence", separator=","))
    return {field.name: field for field in fields}
