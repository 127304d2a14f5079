"""InRa's second KV cache: how far the two streams' keys and values differ, and in how little stream A's can be stored.

    python benchmarks/inra_kv_cache.py
    python benchmarks/inra_kv_cache.py --name demo --model data/06_models/inra \\
        --evaluation-set data/05_model_input/evaluation_set --calibration-set data/05_model_input/search_problems

Needs the data of a finished run in the environment `--env`, or an InRa checkpoint and two sets of problems by path; the
environment then gives the tasks and the sampling. Each way of storing stream A is compared with exact InRa: by the KL
divergence of the next token's distribution, teacher-forced along completions of the exact model, and by pass@1 and
mean tokens of completions drawn with the same random numbers: by default one for each problem, by the largest of every
kind that stays within 1.5 times the base's bytes; with `--draw all` by all of them, with `--draw int8 int4` by these,
as many as in the sweep. What is fitted (low-rank bases, ranges of channels) is fitted on the calibration set's
completions. The store is simulated, and bytes are by formula. Finished parts are kept in the folder `inra_kv_cache` of
the run's work folder. Figures go to benchmarks/results/inra_kv_cache/NAME.json and
docs/images/inra_kv_cache-NAME.png, and docs/inra_kv_cache.md is made from all such files.
"""

import argparse
import json
import sys
from pathlib import Path

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]


def main(given: argparse.Namespace) -> None:
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    from datasets import load_from_disk
    from kv_page import write
    from kv_schemes import ALPHAS, Completions, Measured, Shape, chosen, compare, differences, schemes_of

    from realign_pipes.models.fingerprint import fingerprint, fingerprint_model
    from realign_pipes.models.load import default_device, load_tokenizer

    with KedroSession.create(PROJECT, env=given.env) as session:
        catalog = session.load_context().catalog
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        checkpoint = given.model or catalog.load("inra_checkpoint")
        problems, calibration = (
            load_from_disk(path) if path else catalog.load(name)
            for path, name in ((given.evaluation_set, "evaluation_set"), (given.calibration_set, "search_problems"))
        )
        work = (given.work or catalog.load("params:folders").work / "inra_kv_cache") / fingerprint_model(checkpoint)
    if given.problems:
        problems, calibration = (one.select(range(min(given.problems, len(one)))) for one in (problems, calibration))
    model = Measured.from_pretrained(checkpoint).to(default_device())
    completions = Completions(model, load_tokenizer(checkpoint), tasks, sampling, work)
    key = [list(problems["prompt_ids"]), list(calibration["prompt_ids"]), given.every, given.windows, sampling.seed]
    file = work / f"compared-{fingerprint(key)[:12]}.json"
    if not file.exists():
        found = compare(completions, problems, calibration, given.every, given.windows, given.batch_size)
        file.write_text(json.dumps(found))
    found = json.loads(file.read_text())
    for row in found["schemes"]:
        kls = [row["alphas"][f"{alpha:g}"]["kl"] for alpha in ALPHAS]
        print(f"{row['scheme']:28} {row['ratio_16']:.3f}", *(f"{kl:.2e}" for kl in kls), file=sys.stderr, flush=True)
    samples = given.samples or sampling.samples
    drawn = chosen(found["schemes"], given.draw)
    exact = {}
    for scheme in schemes_of(Shape(**found["shape"]), completions.fit(calibration, given.batch_size), given.windows):
        if scheme.name not in drawn:
            continue
        count = 1 if "some" in given.draw and scheme.simulated else samples
        for alpha in ALPHAS:
            frame = completions.draw(problems, scheme, alpha, count)
            first = exact.setdefault(alpha, frame)  # exact InRa comes first
            measured = {"samples": count, **differences(first[first["sample"] < count], frame)}
            (row,) = (row for row in found["schemes"] if row["scheme"] == scheme.name)
            row["alphas"][f"{alpha:g}"] |= measured
            print(f"{scheme.name}, alpha {alpha:g}: {measured}", file=sys.stderr, flush=True)
    write({"name": given.name, **found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    parser.add_argument("--name", default="demo", help="of the model, on the page and in file names")
    parser.add_argument("--model", type=Path, help="InRa checkpoint (default: the environment's)")
    parser.add_argument("--evaluation-set", type=Path, help="saved dataset (default: the environment's)")
    parser.add_argument("--calibration-set", type=Path, help="other problems (default: the environment's search set)")
    parser.add_argument("--work", type=Path, help="folder for finished parts")
    parser.add_argument("--problems", type=int, help="only the first ones of each set")
    parser.add_argument("--samples", type=int, help="of each problem (default: the environment's)")
    parser.add_argument("--every", type=int, default=1, help="compare on every nth problem only")
    parser.add_argument("--draw", nargs="+", default=["some"], help="whose completions: some, all (see above) or names")
    parser.add_argument("--batch-size", type=int, default=100, help="sequences compared at a time")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16, 32], help="of `last N tokens`")
    main(parser.parse_args())
