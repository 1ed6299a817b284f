"""`lora-edge generate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from lora_edge.errors import RequestError


def generate(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `lora-edge export` wrote.")],
    prompt: Annotated[
        list[str],
        typer.Argument(help="What to draw; <lora:NAME:0.8> applies an adapter of --lora-dir. Several make one batch."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file; -2, -3, … are appended for a batch.")] = Path(
        "image.png"
    ),
    negative: Annotated[str, typer.Option("--negative", help="What not to draw.")] = "",
    lora_dir: Annotated[Path | None, typer.Option(help="Folder of adapters, subfolders included.")] = None,
    embeddings_dir: Annotated[Path | None, typer.Option(help="Folder of embeddings (textual inversion).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; none draws one.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 or less is none.")] = 4.0,
    sampler: Annotated[
        str, typer.Option(help="euler, euler_a, ddim, heun, dpmpp_2m, dpmpp_2m_karras, unipc, lcm or pndm.")
    ] = "euler",
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own size if not given.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own size if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Images in one batch; each has the next seed.")] = 1,
    clip_skip: Annotated[int, typer.Option(help="Layer of the text encoder to read, from its end; 1 is the last.")] = 1,
    spacing: Annotated[str | None, typer.Option(help="Timestep spacing: leading, trailing or linspace.")] = None,
    prediction: Annotated[str | None, typer.Option(help="epsilon, v_prediction or sample.")] = None,
    preview_every: Annotated[int, typer.Option(help="Also write a preview PNG every so many steps; 0 is never.")] = 0,
    backend: Annotated[
        str, typer.Option(help="What runs the graphs: auto, onnxruntime, openvino, torch, coreml or mil-reference.")
    ] = "auto",
    provider: Annotated[
        list[str] | None, typer.Option(help="onnxruntime execution provider, best first; may be repeated.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16, where the backend has a choice.", show_default=False)
    ] = None,
    fit_rank: Annotated[
        bool, typer.Option(help="Cut adapters that have more lanes than Core ML packages take; what is lost is told.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a progress bar.")] = False,
) -> None:
    """Make images, with adapters by their names in the prompt.

    Example: lora-edge generate bundle "a red apple <lora:ink:0.8>" --lora-dir styles --seed 7

    Prompts are those of AUTOMATIC1111: (emphasis:1.2), [from:to:0.5], [this|that], AND, BREAK, any length. Tags may
    also stand inside a schedule, and carry one: <lora:ink:1@0,0@0.5>, start=, stop=, lbw= block weights.

    Each PNG carries its prompt and settings as AUTOMATIC1111 writes them, so that other programs show them.
    """
    from lora_edge.runtime.engine import Engine
    from lora_edge.runtime.image import save_png

    if out.suffix.lower() != ".png":
        raise RequestError(f"{out} does not end in .png, the one format that is written")
    if not out.parent.is_dir():
        raise RequestError(f"the folder {out.parent} for the images does not exist")
    wanted: dict[str, Any] = {"timestep_spacing": spacing, "prediction_type": prediction}
    engine = Engine.open(
        bundle, backend, lora_dir, embeddings_dir, providers=provider, precision=precision, fit_rank=fit_rank
    )
    with tqdm(total=steps, disable=as_json, unit="step") as bar:

        def on_step(progress: Any) -> None:
            if progress.step == 1:
                bar.total = bar.n + progress.steps  # images that run apart begin anew
            bar.update(1)
            if preview_every and progress.step % preview_every == 0 and progress.step < progress.steps:
                for row, preview in zip(progress.images, progress.preview(), strict=True):
                    save_png(preview, _numbered(out.with_stem(f"{out.stem}.step{progress.step:02d}"), row))

        images = engine.generate(
            prompt[0] if len(prompt) == 1 else prompt,
            negative,
            seed=seed,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            width=width,
            height=height,
            batch=batch,
            clip_skip=clip_skip,
            on_step=on_step,
            **{name: value for name, value in wanted.items() if value is not None},
        )
    paths = [_numbered(out, row) for row in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        save_png(image, path)
    if as_json:
        made = [
            {"file": str(path), "parameters": image.info["parameters"]}
            for image, path in zip(images, paths, strict=True)
        ]
        typer.echo(json.dumps({"images": made, "engine": engine.info}, indent=1))
    else:
        typer.echo("\n".join(map(str, paths)))


def _numbered(path: Path, row: int) -> Path:
    return path if row == 0 else path.with_stem(f"{path.stem}-{row + 1}")
