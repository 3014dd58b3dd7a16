"""`loractr demo`."""

from pathlib import Path
from typing import Annotated

import typer

from loractr.cli.console import say, show, show_json
from loractr.cli.options import AsJson, Plain


def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")] = Path("demo"),
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Train mix, single and mlora on a click log whose best possible AUC is known."""
    from loractr.demo import demo as train_all
    from loractr.evaluation import comparison_table
    from loractr.tracking import ProgressBar

    with ProgressBar() as bar:
        results = train_all(out, callbacks=(bar,), announce=lambda name: say(f"== {name}"))
    if as_json:
        show_json({name: metrics.as_dict() for name, metrics in results.items()})
        return
    (division, *_) = results["mlora"].divisions
    show([comparison_table(results, division)], plain=plain)
    say(f"artifact: {out / 'mlora' / 'artifact'}")
