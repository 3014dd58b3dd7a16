"""The whole way on synthetic data: train one MLoRA model, read its metrics, score new rows.

    python examples/01_quickstart.py      # about half a minute; writes into a temporary folder

The click probability of every synthetic row is known, so the best possible AUC stands beside ours.
"""

import tempfile
from pathlib import Path

from loractr import RunConfig, load, run

config = RunConfig.model_validate(
    {
        "data": {
            "source": "synthetic",
            "synthetic": {"rows": 100_000, "users": 1_000, "items": 300, "domains": 6},
        },
        "model": {"backbone": "deepfm", "embedding_size": 8, "hidden_sizes": [64, 32]},
        "method": {"name": "mlora", "rank": {"fixed": 8}},
        "training": {"batch_size": 512, "epochs": 8, "patience": 1, "learning_rate": 2e-3},
    }
)

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "run"
    metrics = run(config, out)

    division = metrics.divisions["domain"]
    best = metrics.best_possible.divisions["domain"]
    print(f"{'domain':10} {'rows':>6} {'AUC':>7} {'best':>7}")
    for name, domain in division.domains.items():
        print(f"{name:10} {domain.rows:6} {domain.auc:7.4f} {best.domains[name].auc:7.4f}")
    print(f"{'WAUC':10} {'':6} {division.wauc:7.4f} {best.wauc:7.4f}")

    scorer = load(out / "artifact")
    row = {"user": 17, "segment": 3, "item": 5, "category": 2, "tags": [1, 4], "hour": 20}
    row |= {"device": "phone", "price": 9.99, "domain": "domain_00"}
    print("probability of a click:", scorer.predict([row])[0])
    print("in another domain:     ", scorer.predict([row], domain="domain_01")[0])
