"""The command line: arguments -> one call -> one exit code. No logic, and nothing heavy is imported before a command is known.

Exit codes: 0 done · 1 a bug (with its trace) · 2 something to mend in a config or an argument (one line) · 3 ended before all
was done, by something that may pass: the same command goes on · 130 stopped by Ctrl-C: the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.errors import TransientError, UserError

DONE, BUG, MEND, UNFINISHED, STOPPED = 0, 1, 2, 3, 130


class Commands(TyperGroup):
    """Turns what a command raises into one line and an exit code; bugs, ContractErrors too, leave with their trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as err:
            say(err)
            raise typer.Exit(MEND) from err
        except TransientError as err:
            say(err)
            raise typer.Exit(UNFINISHED) from err
        except KeyboardInterrupt as err:
            say("stopped; what is committed stays, and the same command goes on")
            raise typer.Exit(STOPPED) from err


def say(what: object) -> None:
    """Each fault on a line of its own, on stderr."""
    for line in str(what).splitlines():
        typer.echo(f"error: {line}", err=True)


app = typer.Typer(
    cls=Commands,
    epilog="Exit codes: 0 done, 1 a bug, 2 something to mend (one line says what), 3 unfinished: the same command goes on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"shardmill {version('shardmill')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Prints the version.")] = False,
) -> None:
    """Turns lists of links into pretraining corpora: download, clean, dedupe, score, shard, with every row accounted for."""


Config = Annotated[Path, typer.Argument(help="The run's YAML config; configs/ holds presets.")]
Run = Annotated[str, typer.Argument(help="The run's folder or URL, for example runs/laion_subset.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Overrides one key of the config; repeatable.")]


@app.command()
def plan(config: Config, overrides: Set = None) -> None:
    """Shows what a run would do: phases, resources, parts to do and done, and why. Begins nothing."""
    import pipeline.plan

    pipeline.plan.show(config, overrides or [])


@app.command()
def run(config: Config, overrides: Set = None) -> None:
    """Makes the shards and the report of a config. Repeated, it goes on where it stopped."""
    import pipeline.runs

    raise typer.Exit(DONE if pipeline.runs.run(config, overrides or []).ok else UNFINISHED)


@app.command()
def report(run: Run) -> None:
    """Shows the report of a run: rows, fates, rates, scores and sizes."""
    import pipeline.report

    pipeline.report.show(run)


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="A run's folder or URL.")],
    run_b: Annotated[str, typer.Argument(help="Another run's; the page is written into its report folder.")],
) -> None:
    """Compares two runs: fates, distributions, which rows both have, and what moved and why."""
    import pipeline.compare

    pipeline.compare.show(run_a, run_b)


@app.command()
def browse(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Serves a local page to look through all rows, kept and dropped: filters, any order, free text, images and stories."""
    import pipeline.browse

    pipeline.browse.serve(run, port)


@app.command()
def explain(
    run: Run,
    what: Annotated[
        str,
        typer.Argument(
            help="A URL, uid, sample's key or the list's id, host=NAME, text=WORDS of a caption, row=NUMBER of the input, or child=NUMBER."
        ),
    ],
) -> None:
    """Tells what became of a row, and why."""
    import pipeline.explain

    pipeline.explain.show(run, what)


@app.command()
def retry(
    run: Run,
    reasons: Annotated[list[str], typer.Option("--reason", metavar="STAGE:REASON", help="The fate to try again; repeatable.")],
    rebuild: Annotated[
        bool, typer.Option("--rebuild/--append", help="Write all shards anew, or leave them and append new ones (the default).")
    ] = False,
) -> None:
    """Tries again the rows that ended with these fates, for example download:timeout."""
    import pipeline.retry

    raise typer.Exit(DONE if pipeline.retry.run(run, reasons, rebuild).ok else UNFINISHED)


@app.command()
def verify(run: Run) -> None:
    """Reads every shard of a run again and checks it against manifest, Parquet and ledger."""
    import pipeline.verify

    raise typer.Exit(DONE if pipeline.verify.show(run) else BUG)


@app.command()
def export(run: Run, out: Annotated[str, typer.Argument(help="A new folder or fsspec URL for the files.")]) -> None:
    """Writes the clips of a run over videos as HowTo100M's files: a CSV a video, the list, and raw_caption.json."""
    import pipeline.export

    pipeline.export.show(run, out)


@app.command()
def train(config: Config, overrides: Set = None) -> None:
    """Trains a model on shards: a corpus config's own, or those that a config of configs/train/ names. Repeated, it goes on."""
    import pipeline.train

    pipeline.train.run(config, overrides or [])


@app.command("eval")
def evaluate(  # noqa: PLR0913, PLR0917 - each is an option of the command
    model: Annotated[
        str, typer.Argument(help="open_clip's name, a model's or a run's folder, the config it was trained by, or offline-scorer.")
    ],
    overrides: Set = None,
    data: Annotated[list[str] | None, typer.Option(help="A run, shards, or a CSV with --images; repeatable.")] = None,
    images: Annotated[str | None, typer.Option(help="The folder of the images that the CSV names.")] = None,
    judgements: Annotated[
        tuple[str, str] | None, typer.Option(metavar="CSV IMAGES", help="People's judgements, for Kendall's tau-c.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip's tag of the weights, or a file of weights.")] = None,
    classes: Annotated[str | None, typer.Option(help="Zero-shot: a text file of class names, one a line.")] = None,
    templates: Annotated[str, typer.Option(help="Zero-shot: openai, simple, plain, or a file with {} for the class.")] = "openai",
    caption: Annotated[str | None, typer.Option(help="JSON key or column of the captions, other than the usual.")] = None,
    label: Annotated[str | None, typer.Option(help="JSON key or column of the labels, other than .cls.")] = None,
    prefix: Annotated[str, typer.Option(help="Put before each judged caption (CLIPScore: 'A photo depicts ').")] = "",
    captioning: Annotated[bool, typer.Option("--captioning/--no-captioning", help="Have a CoCa model write captions.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; by default a GPU where there is one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffled pairs.")] = 0,
    storage: Annotated[
        list[str] | None,
        typer.Option("--storage-option", metavar="KEY.SUB=VALUE", help="fsspec's, for whatever lies at a URL; repeatable."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Where the figures go; by default eval.json, beside the model if it lies in a folder.")
    ] = None,
) -> None:
    """Measures a model: retrieval, zero-shot classes, true against shuffled pairs, CoCa's captions, agreement with people."""
    import pipeline.config
    import pipeline.evaluate

    storage_options = pipeline.config.options_of(storage or [], pipeline.config.STORAGE_OPTION)
    options = pipeline.evaluate.Options(
        tuple(data or ()), images, judgements, prefix, caption, label, classes, templates, captioning, batch, seed, storage_options
    )
    pipeline.evaluate.show(pipeline.evaluate.run(model, options, pretrained, device, out, overrides))


@app.command()
def stages(
    name: Annotated[str | None, typer.Argument(help="One stage (or module:Class) in full; without it, all in short.")] = None,
) -> None:
    """Lists the stages with their columns, reasons and options."""
    import pipeline.reference

    pipeline.reference.show(name)


@app.command()
def submit(
    config: Config,
    overrides: Set = None,
    address: Annotated[str | None, typer.Option(help="The cluster's job server; without it, the config's ray.address.")] = None,
) -> None:
    """Runs a config as a job of a Ray cluster: ships shardmill, the config and your own stages, and follows the log."""
    import pipeline.cluster

    raise typer.Exit(DONE if pipeline.cluster.submit(config, overrides or [], address) else UNFINISHED)


@app.command()
def schema() -> None:
    """Prints the JSON schema of a config, for editors."""
    import pipeline.reference

    sys.stdout.write(pipeline.reference.schema_text())


@app.command()
def clean(run: Run) -> None:
    """Removes what the current state of a run no longer uses: files of old keys, comparisons of former shards."""
    import pipeline.clean

    pipeline.clean.run(run)


def main() -> None:
    """The command `shardmill`; ends the process with its exit code."""
    app(prog_name="shardmill")


if __name__ == "__main__":
    main()
