"""What slimming costs in accuracy, by data set, budget and estimator, at equal MACs.

    python -m tools.accuracy_table run --study fashion_mnist --mac-reduction 0.46 --impact cover
    python -m tools.accuracy_table run ... --stages finetuned   # adds that stage to the row
    python -m tools.accuracy_table render                # docs/bench/accuracy/*.json -> .md, .png

A row is one search (its seed draws the calibration images too), judged on test images with the
dense model's weights, after the refit, and after fine-tuning if asked for. Schedules and weights
stay in `build/accuracy/`, so that a killed run goes on; each judged stage is committed to the JSON
file at once. The test split is looked at here only; nothing is chosen by it.
"""

from __future__ import annotations

import fcntl
import json
import time
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from slimdeploy.console import note
from slimdeploy.counts import ShapeChoice
from slimdeploy.files import write_text
from slimdeploy.images import ImageFolder
from slimdeploy.slim.checkpoint import save_weights
from slimdeploy.slim.finetune import Finetuner
from slimdeploy.slim.options import AmpDtype, FinetuneOptions
from slimdeploy.slim.timm_models import load_model
from tools.accuracy_bench import WORK, Bench
from tools.accuracy_models import Candidate, Estimator, Wanted, candidate
from tools.accuracy_studies import STUDIES, Stage, recipe
from tools.hits import packed
from tools.remembered import Remembered

app = App(help="What slimming costs in accuracy, at equal MACs.")
RECORDS = Path("docs/bench/accuracy")
_FREE: list[Stage] = ["refit", "dense_weights"]


@app.command
def run(
    *,
    study: str,
    mac_reduction: float,
    impact: Estimator,
    shape: ShapeChoice = "auto",
    seed: int = 0,
    images: int = 192,
    test_images: int = 10000,
    stages: Annotated[list[Stage], Parameter(consume_multiple=True)] = _FREE,
    amp_dtype: AmpDtype = "bfloat16",
    device: str = "cpu",
    workers: int = 2,
) -> None:
    """Measure one row, or what of it is not yet measured.

    Args:
        impact: the estimator; or what decides by image: predictor and merge (`slim --dynamic`), or
            the peers evit and tome, which have no refit: --stages dense_weights.
        amp_dtype: what models are judged and fine-tuned in; other than bfloat16, the rows go to a
            record of their own.
        device: where it is fine-tuned and judged; the search and the refit run on the CPU.
        workers: processes that load images for the fine-tuning.
    """
    bench = Bench(study, STUDIES[study], test_images, amp_dtype, device)
    wanted = Wanted(mac_reduction, impact, shape, seed, images)
    name, found = wanted.name, candidate(bench, wanted)
    about = found.about
    for stage in stages:
        called = f"{name}-{stage}"
        if stage == "finetuned" or stage == "finetuned_longer":
            here = {"device": device, "workers": workers, "amp_dtype": bench.amp}
            options = replace(recipe(bench.study, stage, seed), **here)
            digest = sha256(json.dumps(options.identity()).encode()).hexdigest()[:8]
            called = f"{name}-finetuned-{digest}"
            weights = _finetuned(bench, found, options, WORK / study / f"{called}.safetensors")
            told = {"recipe": options.identity(), **_seconds(study, called)}
            suffix = stage.removeprefix("finetuned")
            about |= {f"{field}{suffix}": value for field, value in told.items()}
        else:
            weights = found.weights[stage]
        judged = bench.judge(found.make(weights), called)
        record(bench, asdict(wanted), {**about, stage: judged})


def _seconds(study: str, called: str) -> dict[str, float]:
    spent: dict[str, float] = json.loads((WORK / study / f"{called}.seconds").read_text())
    return spent


def _finetuned(bench: Bench, found: Candidate, options: FinetuneOptions, path: Path) -> Any:
    """The dense model with fine-tuned weights, trained unless the file is there."""
    if not path.is_file():
        runner = Finetuner(
            bench.model,
            found.weights.get("refit", bench.model),
            found.schedule,
            ImageFolder.open(bench.study.data, "train"),
            bench.preprocessing,
            options,
            state_path=path.with_suffix(".state"),
            make_slim=lambda dense, _: found.make(dense),
        )
        answers = WORK / bench.name / f"answers-{options.amp_dtype}"
        task: Any = runner.task
        task._ask_teacher = teacher = Remembered(task._ask_teacher, answers)
        cpu, wall = time.process_time(), time.perf_counter()
        model = runner.run()
        spent: dict[str, Any] = {"finetune_cpu_seconds": time.process_time() - cpu + teacher.saved}
        if options.device != "cpu":  # a teacher that remembers makes it shorter for later rows
            spent = {f"finetune_{options.device}_seconds": time.perf_counter() - wall}
        write_text(path.with_suffix(".seconds"), json.dumps(spent))
        save_weights(model, path, name=bench.study.model, preprocessing=bench.preprocessing)
        runner.finished()
    return load_model(bench.study.model, path, bench.study.kwargs)[0]


def record(bench: Bench, key: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what was measured to the study's JSON file."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:  # two runs may share the file
        fcntl.flock(lock, fcntl.LOCK_EX)
        suffix = "" if bench.amp == "bfloat16" else f"_{bench.amp}"
        _add(RECORDS / f"{bench.name}{suffix}.json", bench, key, found)
    note(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}))


def _add(path: Path, bench: Bench, key: dict[str, Any], found: dict[str, Any]) -> None:
    before = json.loads(path.read_text()) if path.is_file() else {"dense": {}, "rows": []}
    rows, dense = before["rows"], before["dense"]
    dense[str(len(bench.test))] = packed(bench.dense == bench.labels)
    row = next((r for r in rows if all(r[k] == v for k, v in key.items())), None)
    if row is None:
        rows.append(row := dict(key))
    row.update(found)
    rows.sort(key=lambda r: tuple(r[field] for field in key))
    whole = {"study": bench.study.title, "computed_in": bench.amp, "dense": dense, "rows": rows}
    write_text(path, json.dumps(whole, indent=1) + "\n")


@app.command
def render() -> None:
    """Write the Markdown page and its picture from all records."""
    from tools.accuracy_page import page
    from tools.accuracy_picture import draw

    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    write_text(RECORDS.with_suffix(".md"), page(records))
    shown = {
        name: record for name, record in records.items() if record["computed_in"] == "bfloat16"
    }
    draw(shown, RECORDS.with_suffix(".png"))


if __name__ == "__main__":
    app()
