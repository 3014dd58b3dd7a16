import io
import json

from rich.console import Console

from loractr.environment import differences, environment, threads
from loractr.tracking import ProgressBar
from loractr.training.events import StageResult, StageStarted, Stepped, Validated
from loractr.training.history import HistoryFile


def validated(epoch: float, domain: str | None = None) -> Validated:
    return Validated(
        stage="adapt",
        epoch=epoch,
        step=int(10 * epoch),
        rows=100,
        loss=0.25,
        metric="wauc",
        value=0.75,
        best=True,
        scores={"wauc": 0.75},
        domain=domain,
    )


def test_history_holds_a_line_for_each_validation_and_nothing_else(tmp_path):
    history = HistoryFile(tmp_path / "history.jsonl")
    history(StageStarted("adapt", 10, 5, "Adam"))
    for epoch in (0.5, 1.0):
        history(validated(epoch))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(line["fit"], line["epoch"], line["value"]) for line in lines] == [
        ("base", 0.5, 0.75),
        ("base", 1.0, 0.75),
    ]


def test_a_history_of_an_interrupted_run_is_cut_to_what_its_checkpoint_counts(tmp_path):
    first = HistoryFile(tmp_path / "history.jsonl")
    for epoch in (1.0, 2.0, 3.0):
        first(validated(epoch))
    again = HistoryFile(tmp_path / "history.jsonl")
    again.cut(1)
    again(validated(2.0))
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1.0, 2.0]
    assert again.lines == 2


def test_progress_tells_rows_a_second_loss_and_the_last_validation():
    shown = io.StringIO()
    with ProgressBar(Console(file=shown, force_terminal=True, width=200)) as bar:
        bar(StageStarted("adapt", 1000, 50, "Adam, fused"))
        bar(validated(1.0, domain="home"))
        bar(Stepped("adapt", 1.5, 3.0, 0.3456, 12_345.6))
        bar.progress.refresh()
        bar(StageResult("adapt", "wauc", 0.75, 1.0, False, 50, "Adam, fused", 1.0, {}))
    text = shown.getvalue()
    for wanted in ("stage adapt: 1,000 rows", "[home]", "wauc 0.75000 (best)", "12,346 rows/s"):
        assert wanted in text
    assert "loss 0.3456" in text


def test_without_a_terminal_progress_is_plain_lines():
    shown = io.StringIO()
    with ProgressBar(Console(file=shown, width=200)) as bar:
        bar(StageStarted("adapt", 1000, 50, "Adam, fused"))
        bar(Stepped("adapt", 1.5, 3.0, 0.3456, 12_345.6))
        bar(validated(1.0))
    assert shown.getvalue().splitlines() == [
        "stage adapt: 1,000 rows, 50 trained parameters, Adam, fused",
        "adapt epoch 1.00, loss 0.2500, wauc 0.75000 (best)",
    ]


def test_the_environment_names_what_results_depend_on():
    found = environment()
    assert {"loractr", "torch", "numpy", "polars", "processor", "kernels", "threads"} <= set(found)
    with threads(found["threads"] + 1):
        assert differences(found, environment()) == [
            f"threads was {found['threads']}, is {found['threads'] + 1}"
        ]
    assert environment() == found
