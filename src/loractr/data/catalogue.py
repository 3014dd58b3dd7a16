"""The public data sets: where they are, what of them is read, on what terms.

Terms are given in our words; the publisher's own text decides. MD5 sums are the publishers' own.
"""

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One official file on the web."""

    url: str
    md5: str | None
    """As the publisher states it; None where none is stated."""
    max_bytes: int
    """Most bytes to download."""
    max_unpacked_bytes: int
    """Most bytes to unpack."""


@dataclass(frozen=True)
class Dataset:
    """A data set that a source reads."""

    name: str
    """Name of the source that reads it."""
    title: str
    """What it is, in one line."""
    page: str
    """Where its publisher describes it."""
    files: tuple[str, ...]
    """Files that the source reads; each pattern matches at least one."""
    terms: str
    """Terms of use, in short."""
    citation: str
    """What to cite."""
    archive: Archive | None = None
    """The official download; None where it needs an account or a form."""
    instructions: str = ""
    """What to do by hand where there is no direct download."""
    notices: tuple[str, ...] = ()
    """Licences and read-me files, taken along."""
    folders: tuple[str, ...] = ()
    """Folders of the official download that hold the files."""


_MOVIELENS_1M = Dataset(
    name="movielens-1m",
    title="MovieLens-1M: 1,000,209 film ratings by 6,040 users, 2000-2003",
    page="https://grouplens.org/datasets/movielens/1m/",
    files=("ratings.dat", "users.dat", "movies.dat"),
    terms="For research. Not to be passed on without permission, no commercial use without"
    " permission, no claim that the University of Minnesota endorses you; cite the paper.",
    citation="F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context."
    " ACM TiiS 5(4), 2015. doi:10.1145/2827872",
    archive=Archive(
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        md5="c4d9eecfca2ab87c1945afe126590906",
        max_bytes=16 * _MIB,
        max_unpacked_bytes=64 * _MIB,
    ),
    notices=("README", "README.movielens"),
    folders=("ml-1m",),
)

_KUAIRAND_PURE = Dataset(
    name="kuairand-pure",
    title="KuaiRand-Pure: clicks on 7,583 short videos by 27,285 users in 15 scenarios, 2022",
    page="https://kuairand.com",
    files=(
        "log_standard_4_22_to_5_08_pure.csv",
        "user_features_pure.csv",
        "video_features_basic_pure.csv",
    ),
    terms="CC BY-SA 4.0: use and share with attribution, changes under the same licence.",
    citation="C. Gao et al.: KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly"
    " Exposed Videos. CIKM 2022. doi:10.1145/3511808.3557624",
    archive=Archive(
        url="https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
        md5="0820331067a3784d9691136f772b35a7",
        max_bytes=64 * _MIB,
        max_unpacked_bytes=256 * _MIB,
    ),
    notices=("LICENSE",),
    folders=("data", "KuaiRand-Pure", "KuaiRand-Pure/data"),
)

_AMAZON_2014 = Dataset(
    name="amazon-2014",
    title="Amazon product reviews to July 2014, 5-core: Clothing, Beauty, Health",
    page="https://jmcauley.ucsd.edu/data/amazon/links.html",
    files=(
        "reviews_Clothing_Shoes_and_Jewelry_5.json*",
        "reviews_Beauty_5.json*",
        "reviews_Health_and_Personal_Care_5.json*",
    ),
    terms="No licence is stated: for research, not to be passed on; cite the papers.",
    citation="J. McAuley et al.: Image-based Recommendations on Styles and Substitutes. SIGIR 2015."
    " R. He, J. McAuley: Ups and Downs. WWW 2016. doi:10.1145/2872427.2883037",
    instructions="Fetch the three 5-core files from the publisher's page; they may stay packed.",
)

_AMAZON_2018 = Dataset(
    name="amazon-2018",
    title="Amazon product reviews to October 2018, 5-core, one file per category",
    page="https://nijianmo.github.io/amazon/index.html",
    files=("*_5.json*",),
    terms="No licence is stated: for research, not to be passed on; cite the paper.",
    citation="J. Ni, J. Li, J. McAuley: Justifying Recommendations using Distantly-Labeled Reviews"
    " and Fine-Grained Aspects. EMNLP 2019. doi:10.18653/v1/D19-1018",
    instructions="Ask for access with the form on the publisher's page, and fetch the 5-core file"
    " of each category that you want; they may stay packed.",
)

_TAOBAO_THEME = Dataset(
    name="taobao-theme",
    title="Taobao Cloud Theme: clicks on items within themes, with ready embeddings",
    page="https://tianchi.aliyun.com/dataset/9716",
    files=("theme_click_log.csv", "user_embedding.csv", "item_embedding.csv"),
    terms="As accepted on Tianchi: treat as for research only, not to be passed on.",
    citation="Z. Du et al.: Sequential Scenario-Specific Meta Learner for Online Recommendation."
    " KDD 2019. doi:10.1145/3292500.3330726",
    instructions="Log in to Tianchi, accept the terms on the publisher's page, unpack the files.",
)

_ALI_CCP = Dataset(
    name="ali-ccp",
    title="Ali-CCP: 85 million impressions of a shop with clicks and purchases",
    page="https://tianchi.aliyun.com/dataset/408",
    files=("sample_skeleton_*.csv", "common_features_*.csv"),
    terms="As accepted on Tianchi: non-commercial research, not to be passed on.",
    citation="X. Ma et al.: Entire Space Multi-Task Model. SIGIR 2018. doi:10.1145/3209978.3210104",
    instructions="Log in to Tianchi, accept the terms on the publisher's page, and unpack"
    " sample_train.tar.gz and sample_test.tar.gz into one folder (100 GB).",
)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        _MOVIELENS_1M,
        _KUAIRAND_PURE,
        _AMAZON_2014,
        _AMAZON_2018,
        _TAOBAO_THEME,
        _ALI_CCP,
    )
}
"""Every data set that can be got, by name."""
