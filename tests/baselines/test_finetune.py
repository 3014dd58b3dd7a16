"""Fine-tune: what its recipes add to the stage of each domain."""

from loractr.baselines.finetune import Finetune
from loractr.stage import Stage


def test_the_tuned_recipe_regularises_the_domains_stage_alone():
    base = Stage(name="", learning_rate=0.01)
    plain, tuned = (Finetune(name="finetune", recipe=recipe) for recipe in ("paper", "tuned"))
    assert tuned.stages(base, norm=False) == plain.stages(base, norm=False)
    (one,), (other,) = (m.domain_stages(base, "tab", "b") for m in (plain, tuned))
    more = {"dropout": 0.2, "embedding_dropout": 0.3, "ema": 0.99}
    assert other == one.model_copy(update=more)
    assert one.rows == ("tab", "b")


def test_what_training_says_stands():
    base = Stage(name="", dropout=0.0, ema=0.5)
    (stage,) = Finetune(name="finetune", recipe="tuned").domain_stages(base, "tab", "b")
    assert (stage.dropout, stage.embedding_dropout, stage.ema) == (0.0, 0.3, 0.5)
