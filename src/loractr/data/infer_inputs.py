"""Which columns of unknown data may be inputs or domains, and why the others may not."""

from loractr.data import column_names
from loractr.data.column_names import shown
from loractr.data.columns import Column

_MOST_DOMAINS = 50
_MOST_ODD = 5


def not_an_input(column: Column) -> str | None:
    """Why a column is no input, if so."""
    one = "list" if column.type == "list" else "number"
    reasons = {
        "without a name": not column.name.strip(),
        "it says when, and later rows have times never seen": column.is_time,
        column.unfit or "": column.unfit is not None,
        "without any value": not column.known,
        "probably only known after the click (put it back if it is not)": column.is_outcome,
        "probably another model's score, which may know the click (put it back if not)": (
            column_names.is_score(column.name)
        ),
        "the same in every row": column.is_constant,
        "it counts on, as a time step or a number of rows does, and later rows have values never"
        " seen (put it back if it does not)": column.is_step,
        "different in every row": column.is_single and column.distinct == len(column.values),
        "nearly every row has another value": column.is_single,
        "prose": column.is_prose,
        "ids in floats, which have lost their last digits (store integers or text)": (
            column.rounded and not column.is_amount
        ),
        f"{one}s with many values that are none ({quoted(column.odd)})": (
            len(column.odd) > _MOST_ODD
        ),
    }
    return next((why for why, applies in reasons.items() if applies), None)


def makes_domains(column: Column) -> bool:
    """Whether its values may be domains: few, and no users or items."""
    names_rows = column_names.is_user(column.name) or column_names.is_item(column.name)
    telling = column_names.domain_place(column.name) is not None
    few = 2 <= column.distinct <= _MOST_DOMAINS
    return few and holds_ids(column) and (telling or not names_rows)


def holds_ids(column: Column) -> bool:
    """Whether it holds one id a row."""
    return column.type in ("whole", "text") and not column.is_amount


def telling(columns: list[Column]) -> list[Column]:
    """Columns that are named like a domain and have few values, the most telling first."""
    named = [(column_names.domain_place(c.name), c) for c in columns if makes_domains(c)]
    return [c for place, c in sorted(named, key=lambda one: one[0] or 0) if place is not None]


def quoted(counts: dict[str, int]) -> str:
    """The most frequent texts, as a message shows them."""
    texts = [f"{shown(text)!r}" for text in list(counts)[:3]]
    more = f" and {len(counts) - 3:,} more" if len(counts) > 3 else ""
    return ", ".join(texts) + more
