"""The pipelines by name. Written out, because `kedro run --pipelines X` would make find_pipelines import X alone."""

from kedro.pipeline import Pipeline

from realign_pipes.pipelines import (
    alpha_sweep,
    data_prep,
    demo_models,
    dialogue_models,
    find_alpha,
    inra,
    ladder,
    plan,
    push,
    reporting,
    scores,
    smollm2_models,
    tax,
    teacher_logits,
    trra,
    turns,
)

STAGES = {
    "demo_models": demo_models,
    "data_prep": data_prep,
    "teacher_logits": teacher_logits,
    "trra": trra,
    "inra": inra,
    "alpha_sweep": alpha_sweep,
    "scores": scores,
    "reporting": reporting,
}
"""In the order in which they run."""

EXTRAS = {
    "dialogue_models": dialogue_models,
    "find_alpha": find_alpha,
    "ladder": ladder,
    "plan": plan,
    "push": push,
    "smollm2_models": smollm2_models,
    "tax": tax,
    "turns": turns,
}
"""In no other pipeline, and not in DVC."""


def register_pipelines() -> dict[str, Pipeline]:
    """Each stage by itself, `realign` (all except demo_models, for your own models), `__default__` (all), and besides
    `find_alpha`, which needs a wish, `ladder`, which makes adapters to serve, `push`, which needs a repository, `plan`,
    which only reckons, `dialogue_models` and `smollm2_models`, which make the models of conf/dialogue and conf/smollm2,
    `tax`, which measures other tasks, and `turns`, which holds conversations: no run has them unless they are named."""
    # A namespace makes Kedro-Viz draw a stage as one box that opens. It prefixes node names, but no data set names.
    pipelines = {
        name: Pipeline(module.create_pipeline(), namespace=name, prefix_datasets_with_namespace=False)
        for name, module in {**STAGES, **EXTRAS}.items()
    }
    stages = {name: pipelines[name] for name in STAGES}
    everything = sum(stages.values(), Pipeline([]))
    realign = sum((pipeline for name, pipeline in stages.items() if name != "demo_models"), Pipeline([]))
    return {**pipelines, "realign": realign, "__default__": everything}
