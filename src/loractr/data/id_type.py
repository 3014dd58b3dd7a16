"""What the values of a column of ids are, decided by all of them; then each is read by that alone.

    integer   every value is a whole number: 52, 52.0, "52", "52.0"
    boolean   every value is true or false in any spelling, or 0 and 1 beside such
    time      every value is a date or a moment, or every value a time of day (`moments`)
    text      anything else, so one "007" or one "2.5" among whole numbers is enough

A file may write the same id in several ways: pandas turns whole numbers into 52.0 where a column
has a gap, and `true` into `True`. So values are first spelt without loss (`canonical.spelled`),
the type is decided, and `canonical.read` brings every spelling of an id to one form.
"""

import logging

import polars as pl

from loractr.data import moments
from loractr.errors import DataError, some
from loractr.schema import IdType

log = logging.getLogger(__name__)

WHOLE = r"^\s*(-?(?:0|[1-9]\d*))(?:\.0*)?\s*$"
"""A whole number without leading zeros, perhaps as a float writes it; group 1 is its digits."""
TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")
"""Spellings of the two, in lower case."""

_NUMBER = r"^\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*$"
_FRACTION = r"\.\d*[1-9]|[eE]-"  # within a number
_SCIENTIFIC = r"^-?\d(?:\.\d+)?e\+\d{2,}$"  # as Python and pandas write floats from 1e16 on


class IdTypes:
    """Decides the type of a column, batch by batch, without holding its values.

    Args:
        what: Who reads the column, for messages: "field 'user'".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._seen = False
        self._possible: set[IdType] = {"integer", "boolean", "time"}
        self._numbers = self._floats = True  # whether all are numbers; as a column of floats writes
        self._fractions = False  # whether some have one
        self._moments = self._clocks = True  # of times: all moments, or all times of day
        self._wholes = 0
        self._odd: list[str] = []  # the first values that are no whole numbers

    def observe(self, spelled: pl.Series) -> None:
        """Take in values (N,) as `canonical.spelled` gives them; missing ones say nothing."""
        values = spelled.drop_nulls()
        if not len(values):
            return
        self._seen = True
        if values.dtype == pl.Int64:
            self._possible &= {"integer"}
            self._wholes += len(values)
            return
        values = values.unique(maintain_order=True)
        whole = values.str.contains(WHOLE)
        self._wholes += int(whole.sum())
        self._only("integer", whole)
        self._only("boolean", values.str.strip_chars().str.to_lowercase().is_in([*TRUE, *FALSE]))
        if "time" in self._possible:
            self._moments &= bool(moments.series(values).is_not_null().all())
            self._clocks &= bool(moments.clock(values).is_not_null().all())
            if not (self._moments or self._clocks):
                self._possible.discard("time")
        others = values.filter(~whole)
        if len(others):
            self._odd = [*self._odd, *others.head(3).to_list()][:3]
            self._numbers &= bool(others.str.contains(_NUMBER).all())
            self._fractions |= bool(others.str.contains(_FRACTION).any())
            self._floats &= bool(others.str.contains(_SCIENTIFIC).all())

    def _only(self, id_type: IdType, fits: pl.Series) -> None:
        if not fits.all():
            self._possible.discard(id_type)

    @property
    def are_decimals(self) -> bool:
        """Whether every value is a number, and some have a fraction: amounts rather than ids."""
        return self._fractions and self._numbers and not self._possible

    def decided(self, *, exact: bool = True) -> IdType:
        """The type; text for a column without values.

        Args:
            exact: Whether floats that have lost digits are an error, as they are for ids.

        Raises:
            DataError: Whole numbers that were written as floats so large that digits are lost.
        """
        if not self._seen:
            return "text"
        for id_type in ("integer", "boolean", "time"):
            if id_type in self._possible:
                return id_type
        if self._floats and exact:
            raise lost_digits(self.what, self._odd[0])
        return "text"

    def tell(self) -> None:
        """Say why a column with whole numbers is text, if it is."""
        if self._wholes and self._seen and not self._possible:
            log.info(
                "%s: read as text, because of values such as %s: 7, 07 and 7.0 are three ids",
                self.what,
                some(self._odd),
            )


def lost_digits(what: str, example: str, more: str = "") -> DataError:
    """The error for ids that a float has rounded."""
    return DataError(
        f"{what}: ids such as {example[:40]} were written as floating-point numbers, which lose the"
        f" last digits from 2**53 = {2**53:,} on{more}.",
        fix="store that column as integers or text.",
    )
