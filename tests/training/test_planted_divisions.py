"""Planted structure of the synthetic source: a second division; similar domains; a small domain.

Models see segment and category, and the divisions are no inputs, so that the backbone can learn the
shared preference alone. The true probabilities are known: models are compared by their expected log
loss on test rows under the truth, in nats, which has no noise of labels. Comments at thresholds say
what was measured, seed by seed; a seed is that of the log and of the weights.
"""

from dataclasses import replace

import numpy as np
import pytest

from loractr import prepare
from loractr.adapters.gate import domain_weights
from loractr.adapters.mlora import Rank
from loractr.config import METHODS, parse_config
from loractr.predict import assembled_logits, logits
from loractr.training import fits

SEEDS = range(3)


def config_of(synthetic, method, training, seed, *, batch_norm):
    return parse_config(
        {
            "data": {
                "source": "synthetic",
                "synthetic": {"users": 300, "items": 100, "seed": seed} | synthetic,
                "fields": ["segment", "category"],
                "domain_as_field": False,
            },
            "model": {
                "backbone": "mlp",
                "embedding_size": 8,
                "embedding_std": 0.1,
                "hidden_sizes": [32, 16],
                "batch_norm": batch_norm,
            },
            "method": method,
            "training": {
                "learning_rate": 0.01,
                "select": "log_loss",
                **training,
            },
            "seed": seed,
        }
    )


def expected_log_loss(logit, truth):
    """Of each row, what the log loss would be on average, if labels were drawn anew."""
    logit, truth = logit.astype(np.float64), truth.astype(np.float64)
    return np.logaddexp(0, logit) - truth * logit


def beyond_seeds(gap):
    """Whether the mean over seeds is more than three standard errors from zero."""
    return gap.mean() > 3 * gap.std(ddof=1) / np.sqrt(len(gap))


# --- two divisions ---

TWO_DIVISIONS = {"rows": 15_000, "domains": 3, "zipf": 0.0, "deviation": 1.5, "auxiliary": 2}
STEPS = {"epochs": 15, "patience": 4, "batch_size": 512}
MANY = ("multilora", "multilora_add", "multilora_avg")


def with_permuted_auxiliary(data):
    """The same rows with auxiliary domains that say nothing about them."""
    random = np.random.default_rng(99)

    def permuted(rows):
        domains = rows.domains.copy()
        domains[:, 1] = random.permutation(domains[:, 1])
        return replace(rows, domains=domains)

    parts = {part: permuted(getattr(data, part)) for part in ("train", "validation", "test")}
    return replace(data, **parts)


def losses_of(seed, folder):
    """Expected log loss by method; all of them start with the same mix model."""

    def method(name):
        divisions = {"divisions": ["domain", "auxiliary"]} if name in MANY else {}
        return {"name": name, "rank": {"fixed": 8}} | divisions

    def trained(name, data, out, start=None):
        made = {"name": "mix"} if name == "mix" else method(name)
        config = config_of(TWO_DIVISIONS, made, STEPS, seed, batch_norm=True)
        (folder / out).mkdir()
        return fits.train(config, data, folder / out, start=start).model

    plain = config_of(TWO_DIVISIONS, {"name": "mix"}, STEPS, seed, batch_norm=True)
    data = fits.Data.of(prepare(plain.data, folder / "prepared"))
    models = {"mix": trained("mix", data, "mix")}
    start = models["mix"].state_dict()
    for name in ("shared_adapter", "singlelora", *MANY):
        models[name] = trained(name, data, name, start)
    control = with_permuted_auxiliary(data)
    models["permuted"] = trained("multilora", control, "permuted", start)
    rows = {name: control.test if name == "permuted" else data.test for name in models}
    return {
        name: expected_log_loss(logits(model, rows[name], data.schema), data.test.oracle).mean()
        for name, model in models.items()
    }


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Method -> expected log loss by seed."""
    found = [losses_of(seed, tmp_path_factory.mktemp(f"seed-{seed}")) for seed in SEEDS]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        # gains in thousandths of a nat, seeds 0 to 2, and one more that the test leaves out
        ("singlelora", "mix"),  # 57, 53, 38, 90: the first division is worth its experts
        ("singlelora", "shared_adapter"),  # 56, 50, 36, 87: not owed to training longer
        ("multilora", "singlelora"),  # 27, 12, 33, 21: so is the second
        ("multilora_add", "singlelora"),  # 31, 14, 33, 20: by a sum too
        ("multilora_avg", "singlelora"),  # 26, 12, 31, 15: and by a mean
        ("multilora", "permuted"),  # 23, 14, 32, 21: owed to what the second division says
    ],
)
def test_each_division_is_worth_its_experts_beyond_the_noise_of_seeds(losses, better, worse):
    gap = losses[worse] - losses[better]
    assert beyond_seeds(gap), losses
    assert gap.min() > 0.006, losses


@pytest.mark.slow
def test_a_second_division_that_says_nothing_gains_nothing(losses):
    """Of what MultiLoRA gains over SingleLoRA, the control gains less than a third: measured 4.2,
    -1.9, 0.5 and -0.3 thousandths of a nat, of 27, 12, 33 and 21 (seeds 0 to 3)."""
    control = losses["singlelora"] - losses["permuted"]
    multi = losses["singlelora"] - losses["multilora"]
    assert (control < multi / 3).all(), losses
    assert not beyond_seeds(control), losses


@pytest.mark.slow
def test_an_adapter_for_all_rows_finds_nothing_that_is_a_domains(losses):
    """Of what SingleLoRA gains over mix, the control gains less than a third."""
    control = losses["mix"] - losses["shared_adapter"]
    single = losses["mix"] - losses["singlelora"]
    assert (control < single / 3).all(), losses


# --- similar domains ---

SMALL = 500  # training rows; of ten domains two have more, and the smallest has about 40
SIMILAR = {"rows": 10_000, "domains": 10, "zipf": 2.0, "deviation": 1.5}


def gain_of_the_gate(synthetic, seed, folder):
    """MoE-MLoRA's expected log loss in the small domains, less than of each one's own expert by so
    much; and the gate's weights there of an expert of the same kind, and of another kind."""
    method = {"name": "moe_mlora", "rank": {"fixed": 8}}
    gate = {"gate": {"learning_rate": 0.05}}
    training = {"epochs": 30, "patience": 5, "batch_size": 128, "stages": gate}
    config = config_of(synthetic, method, training, seed, batch_norm=False)
    data = fits.Data.of(prepare(config.data, folder / "prepared"))
    (folder / "moe").mkdir()
    model = fits.train(config, data, folder / "moe").model

    small = np.bincount(data.train.domains[:, 0]) < SMALL
    rows = data.test.take(np.flatnonzero(small[data.test.domains[:, 0]]))
    own = replace(model.routing, mixed=False)
    mixed, alone = (
        expected_log_loss(logits(model, rows, data.schema, routing=r), rows.oracle).mean()
        for r in (model.routing, own)
    )
    places = np.array([int(name[-2:]) for name in data.schema.divisions[0].domains])
    kind = places % synthetic.get("kinds", len(places))
    same = kind[:, None] == kind
    others = same & ~np.eye(len(kind), dtype=bool)
    (weights, *_) = domain_weights(model).values()  # one gate for all layers
    weights = weights.numpy()[small]
    return alone - mixed, [weights[mask[small]].mean() for mask in (others, ~same) if mask.any()]


@pytest.mark.slow
def test_small_domains_gain_from_the_experts_of_similar_ones_and_from_no_others(tmp_path):
    """Two kinds of domains, and as a control the same log with each domain of its own kind."""

    def found(name, synthetic):
        for seed in SEEDS:
            folder = tmp_path / f"{name}-{seed}"
            folder.mkdir()
            yield gain_of_the_gate(synthetic, seed, folder)

    gains, weights = map(np.array, zip(*found("kinds", SIMILAR | {"kinds": 2}), strict=True))
    control = np.array([gain for gain, _ in found("own", SIMILAR)])
    assert beyond_seeds(gains), gains  # measured: .0087, .0084, .0100; with another seed .0160
    assert gains.min() > 0.004, gains
    assert (control < gains / 3).all(), (control, gains)  # .0015, 0, 0: the gate left aside
    same, other = weights.T  # of one expert: .075 and .022, .101 and .050, .061 and .020
    assert (same > 1.4 * other).all(), weights


# --- a domain that is too small for a model of its own ---

SYNTHETIC = {"rows": 20_000, "users": 300, "items": 100, "domains": 6, "zipf": 1.5}


@pytest.mark.slow
def test_a_domain_too_small_for_its_own_model_gains_from_sharing(tmp_path):
    """The last of the zipf domains has about 3% of the rows. Measured: correlation of a model's
    logits with the true ones, on that domain's test rows, and on those of the largest domain."""
    config = parse_config(
        {
            "data": {"source": "synthetic", "synthetic": SYNTHETIC},
            "model": {
                "backbone": "mlp",
                "embedding_size": 8,
                "hidden_sizes": [32, 16],
                "batch_norm": True,
            },
            "method": {"name": "mix"},
            "training": {
                "epochs": 20,
                "batch_size": 256,
                "learning_rate": 3e-3,
                "patience": 3,
                "select": "pooled_auc",
            },
        }
    )
    data = fits.Data.of(prepare(config.data, tmp_path / "prepared"))
    share = np.bincount(data.train.domains[:, 0]) / len(data.train)
    assert share.argmin() == 5
    assert share.min() < 0.05

    def agreement(name, seed):
        """Correlation with the truth, in the largest domain and in the smallest."""
        options = {} if name == "single" else {"rank": Rank(divisor=4)}
        method = METHODS[name](name=name, **options)
        one = config.model_copy(update={"method": method, "seed": seed})
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        trained = fits.train(one, data, folder)
        rows = data.test
        z = assembled_logits(trained.model, trained.domain_models, rows, data.schema, "domain")
        truth = np.log(rows.oracle / (1 - rows.oracle))
        own = [np.flatnonzero(rows.domains[:, 0] == domain) for domain in (0, 5)]
        return [np.corrcoef(z[index], truth[index])[0, 1] for index in own]

    found = {
        name: np.array([agreement(name, seed) for seed in range(3)])
        for name in ("single", "mlora", "singlelora")
    }
    for name in ("mlora", "singlelora"):
        large, small = (found[name] - found["single"]).T
        assert small.mean() > 1.5 * small.std(ddof=1), found
        assert small.min() > 0.1, found
        assert small.mean() > 2 * large.mean(), found
