"""Stage teacher_logits: the final hidden states of both models for every completion token, once for all alphas."""

import logging
from pathlib import Path
from typing import Any

from realign_pipes.parameters import Teachers
from realign_pipes.resume import open_work

logger = logging.getLogger(__name__)


def cache_teachers(
    teachers: Teachers, reference_model: Path, aligned_model: Path, calibration_set: Any, work_dir: Path
) -> tuple[Path, dict[str, Any]]:
    """The folder of the two caches (`reference`, `aligned`), and a report of what they cost."""
    import torch

    from realign_pipes.progress import progress_bar
    from realign_pipes.realignment.checkpoints import (
        check_pair,
        default_device,
        fingerprint_model,
        fingerprint_tokenizer,
        load_model,
    )
    from realign_pipes.realignment.teachers import (
        cache_dtype,
        check_examples,
        check_linear_head,
        fingerprint_examples,
        open_cache,
        write_cache,
    )

    tokenizer = check_pair(reference_model, aligned_model)
    check_examples(calibration_set, tokenizer)
    if teachers.mode == "online":
        report: dict[str, Any] = {"mode": "online", "note": "nothing cached: both models run at every step of trra"}
        return open_work(work_dir / "teacher_logits_online", report), report
    data = fingerprint_examples(calibration_set)
    models = {"reference": reference_model, "aligned": aligned_model}
    sources = {
        name: {"model": fingerprint_model(path), "tokenizer": fingerprint_tokenizer(tokenizer), "data": data}
        for name, path in models.items()
    }
    folder = open_work(
        work_dir / "teacher_logits",
        {"sources": sources, "dtype": teachers.dtype, "shard_tokens": teachers.shard_tokens},
    )
    report = {"mode": "cached"}
    for name, path in models.items():
        check_linear_head(load_model(path, device=torch.device("cpu")), name)
    for name, path in models.items():
        model = load_model(path, device=default_device())
        with progress_bar(f"caching the {name}'s hidden states", len(calibration_set)) as advance:
            write_cache(
                folder / name,
                model,
                calibration_set,
                sources[name],
                dtype=cache_dtype(teachers.dtype, model),
                batch_size=teachers.batch_size,
                shard_tokens=teachers.shard_tokens,
                advance=advance,
            )
        report[name] = open_cache(folder / name, sources[name], calibration_set).report(len(tokenizer))
        logger.info(
            "%s: %d tokens, %d bytes a token, %.1f times smaller than full logits",
            name, report[name]["tokens"], report[name]["bytes_per_token"], report[name]["times_smaller"],
        )  # fmt: skip
    return folder, report
